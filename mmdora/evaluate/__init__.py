"""Evaluates models by generated answers: asks the questions of a task, scores the answers, and writes the results."""
