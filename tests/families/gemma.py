"""Gemma 3, Gemma 3n, Gemma 4 and PaliGemma."""

from __future__ import annotations

from typing import Any

import transformers

from .recipe import Recipe, ids, text
from .tiled import SIGLIP, SQUARE
from .words import tokenizer

TURNS = ("<start_of_turn>", "<end_of_turn>", "<unk>", "<mask>")
GEMMA = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "adds_bos": True}


def gemma3() -> Any:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    pictures = transformers.Gemma3ImageProcessor(size=SQUARE)
    return transformers.Gemma3Processor(pictures, tokenizer(named=named, words=TURNS, **GEMMA), image_seq_length=4)


def gemma3_config(processor: Any) -> dict[str, Any]:
    words = text(processor, query_pre_attn_scalar=16, layer_types=["sliding_attention", "full_attention"])
    vision = {"model_type": "siglip_vision_model", **SIGLIP}
    named = {"boi_token_index": "<start_of_image>", "eoi_token_index": "<end_of_image>"}
    sizes = {"vision_config": vision, "text_config": words, "mm_tokens_per_image": 4}
    return sizes | ids(processor, image_token_index="<image_soft_token>", **named)


def paligemma() -> Any:
    pictures: Any = transformers.SiglipImageProcessor(size=SQUARE)
    pictures.image_seq_length = 16
    # The processor writes the start token itself and switches that of the tokenizer off.
    words = tokenizer(named={"image_token": "<image>"}, words=TURNS, **GEMMA | {"adds_bos": False})
    return transformers.PaliGemmaProcessor(pictures, words)


def paligemma_config(processor: Any) -> dict[str, Any]:
    words = text(processor, model_type="gemma")
    vision = {"model_type": "siglip_vision_model", **SIGLIP, "projection_dim": 32}
    sizes = {"vision_config": vision, "text_config": words, "projection_dim": 32}
    return sizes | {"pad_token_id": processor.tokenizer.pad_token_id} | ids(processor, image_token_index="<image>")


def paligemma2_config(processor: Any) -> dict[str, Any]:
    words = text(processor, model_type="gemma2", query_pre_attn_scalar=16)
    words["layer_types"] = ["sliding_attention", "full_attention"]
    return paligemma_config(processor) | {"text_config": words}


NOT_PROJECTOR = ("vision", "language")
RECIPES = {
    "gemma3": Recipe(
        gemma3, gemma3_config, ("<eos>", "<end_of_turn>"), "gemma3", parts=NOT_PROJECTOR, full=("projector",)
    ),
    "paligemma": Recipe(paligemma, paligemma_config, ("<eos>",), without=False, turns=False),
    "paligemma2": Recipe(paligemma, paligemma2_config, ("<eos>",), model="paligemma", without=False, turns=False),
}
