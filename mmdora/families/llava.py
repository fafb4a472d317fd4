"""LLaVA: the general family, whose prompts about one picture can share what they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import DynamicCache, LlavaForConditionalGeneration
from transformers.cache_utils import DynamicLayer

from mmdora.families.family import Family

SHARED_INPUTS = {"input_ids", "attention_mask", "pixel_values"}
"""The inputs of a LLaVA whose pictures are equal rows; Pixtral's have sizes too, and are not."""


class Llava(Family):
    """LLaVA-1.5: a fixed number of tokens per picture, and a decoder that sees all that came before."""

    def shares_prefix(self, model: Any, inputs: Mapping[str, Any]) -> bool:
        """Whether that is exact: pictures are rows of `pixel_values`, and a token sees all before it but padding.

        A window of so many places (Mistral's first versions) would be shortened by padding within it.
        """
        if not isinstance(model, LlavaForConditionalGeneration) or set(inputs) != SHARED_INPUTS:
            return False
        config: Any = model.config.get_text_config()
        return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
