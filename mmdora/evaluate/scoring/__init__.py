"""Scorers, one module per dataset, and the statistics of scores; nothing here imports torch."""
