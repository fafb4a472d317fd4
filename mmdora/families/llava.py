"""LLaVA: the general family, but prompts about the same picture can share the computation of their common beginning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import DynamicCache, LlavaForConditionalGeneration
from transformers.cache_utils import DynamicLayer

from mmdora.families.family import Family

SHARED_INPUTS = {"input_ids", "attention_mask", "pixel_values"}
"""The inputs of a LLaVA that resizes all pictures to one size. A LLaVA with Pixtral's tower also takes their sizes."""


class Llava(Family):
    """LLaVA-1.5: a fixed number of tokens per picture, and a decoder that attends to all earlier tokens."""

    def shares_prefix(self, model: Any, inputs: Mapping[str, Any]) -> bool:
        """Whether sharing gives the same result as reading each prompt by itself.

        Sharing does so if each picture is one row of `pixel_values`, and each token attends to all earlier tokens but
        padding. With a sliding window (Mistral's first versions), padding would take up places in the window.
        """
        if not isinstance(model, LlavaForConditionalGeneration) or set(inputs) != SHARED_INPUTS:
            return False
        config: Any = model.config.get_text_config()
        return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
