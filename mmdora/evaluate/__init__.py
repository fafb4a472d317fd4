"""Evaluates models by generated answers: asks the questions of a task, scores the answers, and writes the results.

The package is called as the function `evaluate` of `models.py`.
"""

from mmdora.called import called

called(__name__, "mmdora.evaluate.models", "evaluate")
