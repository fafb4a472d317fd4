"""Measures what training did to the weights: magnitude, direction, norms and ranks, by modality and layer."""
