"""Scores of generated answers, and the run that generates them."""
