"""Generates a model's answers: in batches, as a stream, or from a server."""

from mmdora.families import Prompt, ask
from mmdora.predict.answers import Partial, generate, stream

__all__ = ["Partial", "Prompt", "ask", "generate", "stream"]
