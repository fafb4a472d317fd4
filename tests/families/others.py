"""Ovis2, whose tower gives probable words of a visual vocabulary, and LFM2-VL, whose layers are convolutions too."""

from __future__ import annotations

from typing import Any

import transformers

from .recipe import CLIP, Recipe, ids, text
from .tiled import SQUARE
from .words import tokenizer

OVIS2 = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
"""What stands around the tiles. `<image>`, which the template writes, is no token of its own."""


def ovis2() -> Any:
    words = tokenizer(eos="<|im_end|>", pad="<|endoftext|>", words=("<|im_start|>", "<IMG_ATOM>", *OVIS2))
    pictures = transformers.Ovis2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=4)
    return transformers.Ovis2Processor(pictures, words, image_seq_length=4)


def ovis2_config(processor: Any) -> dict[str, Any]:
    vision = {**CLIP, "image_size": 16, "patch_size": 4, "hidden_stride": 2, "vocab_size": 32}
    marks = processor.tokenizer.convert_tokens_to_ids(list(OVIS2))
    words = text(processor, model_type="qwen2")
    sizes = {"vision_config": vision, "text_config": words, "visual_indicator_token_ids": marks}
    return sizes | {"vocab_size": words["vocab_size"], "hidden_size": 32} | ids(processor, image_token_id="<IMG_ATOM>")


def lfm2_vl() -> Any:
    marks = ("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
    tags = tuple(f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5))
    start: dict[str, Any] = {"bos": "<|startoftext|>", "eos": "<|im_end|>", "pad": "<|pad|>"}
    words = tokenizer(**start, words=("<|im_start|>", *marks, *tags), adds_bos=True)
    small: dict[str, Any] = {
        "encoder_patch_size": 4,
        "tile_size": 16,
        "min_image_tokens": 4,
        "max_image_tokens": 8,
        "max_tiles": 4,
    }
    return transformers.Lfm2VlProcessor(transformers.Lfm2VlImageProcessor(**small), words)


def lfm2_vl_config(processor: Any) -> dict[str, Any]:
    vision = {"model_type": "siglip2_vision_model", **CLIP, "patch_size": 4, "num_patches": 64}
    words = text(processor, model_type="lfm2", layer_types=["conv", "full_attention"], block_ff_dim=48)
    words["block_auto_adjust_ff_dim"] = False
    sizes = {"vision_config": vision, "text_config": words, "projector_hidden_size": 24}
    return sizes | ids(processor, image_token_id="<image>")


RECIPES = {
    "ovis2": Recipe(ovis2, ovis2_config, ("<|im_end|>",), "ovis2", parts=("vision", "language")),
    "lfm2_vl": Recipe(lfm2_vl, lfm2_vl_config, ("<|im_end|>",), "lfm2_vl"),
}
