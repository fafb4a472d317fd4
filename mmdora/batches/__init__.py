"""Batches: how records become token ids and tensors, and in which order."""
