"""Makes the inputs of `generate` from conversations with their pictures, for several tests."""

from typing import Any

from PIL import Image

from mmdora.families import Prompt, family_of
from mmdora.records.turns import Messages


def encode_prompts(processor: Any, conversations: list[Messages], images: list[list[Image.Image]]) -> Any:
    pairs = zip(conversations, images, strict=True)
    return family_of(processor).encode_prompts([Prompt(messages, own) for messages, own in pairs])
