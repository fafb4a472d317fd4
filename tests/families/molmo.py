"""Molmo 2, which cuts a picture into crops that overlap, and whose marks around a picture are tokens of it."""

from __future__ import annotations

from typing import Any

import transformers

from .recipe import CLIP, Recipe, ids, text
from .words import tokenizer

MARKS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>")
MARKS += ("<frame_start>", "<frame_end>", "<|video|>")
SIZE = {"height": 16, "width": 16}


def molmo2() -> Any:
    end = "<|im_end|>"
    words = tokenizer(bos=end, eos=end, pad="<|endoftext|>", words=("<|im_start|>", *MARKS))
    pictures: dict[str, Any] = {"size": SIZE, "patch_size": 4, "max_crops": 4, "overlap_margins": [1, 1]}
    return transformers.Molmo2Processor(
        transformers.Molmo2ImageProcessor(**pictures), transformers.Molmo2VideoProcessor(size=SIZE, patch_size=4), words
    )


def molmo2_config(processor: Any) -> dict[str, Any]:
    tower = {**CLIP, "num_key_value_heads": 2, "head_dim": 8}
    vision = {**tower, "image_size": [16, 16], "patch_size": 4}
    adapter = {**tower, "text_hidden_size": 32, "vision_feature_layer": [1, 0]}
    del adapter["num_hidden_layers"]
    named = {"image_start_token_id": "<im_start>", "low_res_image_start_token_id": "<low_res_im_start>"}
    named |= {"image_end_token_id": "<im_end>", "image_patch_id": "<im_patch>", "frame_start_token_id": "<frame_start>"}
    sizes = {"vision_config": vision, "adapter_config": adapter, "text_config": text(processor)}
    return sizes | ids(processor, frame_end_token_id="<frame_end>", **named)


RECIPES = {"molmo2": Recipe(molmo2, molmo2_config, ("<|im_end|>",), "molmo2")}
