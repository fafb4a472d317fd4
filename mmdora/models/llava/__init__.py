"""Composes a LLaVA of a vision tower, a projector and a language model."""
