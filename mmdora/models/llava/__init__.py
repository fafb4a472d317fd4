"""LLaVA: composing one of a vision tower, a new projector and a language model."""
