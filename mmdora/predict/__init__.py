"""Answers of a model: in batches, as a stream, or from a server."""

from mmdora.predict.answers import Partial, Prompt, ask, generate, stream

__all__ = ["Partial", "Prompt", "ask", "generate", "stream"]
