"""A prompt: a conversation that ends with a question, and the images or features that the question is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from mmdora.records.turns import Messages
from mmdora.records.videos import Video


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a question, its images in the order of the image parts, and its videos likewise.

    `features` [frames, width] float represent a clip, for models that read clips as features.
    """

    messages: Messages
    images: list[Image.Image] = field(default_factory=list)
    features: np.ndarray | Tensor | None = None
    videos: list[Video] = field(default_factory=list)

    @property
    def characters(self) -> int:
        return sum(len(part.get("text", "")) for message in self.messages for part in message["content"])


def ask(question: str, image: Image.Image | None = None, video: Video | None = None) -> Prompt:
    """The prompt of one question about one image and one video (or about none)."""
    content: list[dict[str, Any]] = [{"type": "image"}] if image is not None else []
    content += [{"type": "video"}] if video is not None else []
    content.append({"type": "text", "text": question})
    images, videos = [] if image is None else [image], [] if video is None else [video]
    return Prompt([{"role": "user", "content": content}], images, videos=videos)
