"""A prompt: a conversation that ends with a question, and the images or features that the question is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from mmdora.records.turns import Messages


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a question, and its images in the order of the image parts.

    `features` [frames, width] float represent a clip, for models that read clips as features.
    """

    messages: Messages
    images: list[Image.Image] = field(default_factory=list)
    features: np.ndarray | Tensor | None = None

    @property
    def characters(self) -> int:
        return sum(len(part.get("text", "")) for message in self.messages for part in message["content"])


def ask(question: str, image: Image.Image | None = None) -> Prompt:
    """The prompt of one question about one image (or about none)."""
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if image is not None:
        content.insert(0, {"type": "image"})
    return Prompt([{"role": "user", "content": content}], [] if image is None else [image])
