"""DeepSeek-VL with its second tower, and Janus, whose processor writes a system text before each conversation."""

from __future__ import annotations

from typing import Any

import transformers

from .recipe import CLIP, Recipe, ids, text
from .tiled import SIGLIP, SQUARE, TILE
from .words import tokenizer

END = "<｜end▁of▁sentence｜>"
START: dict[str, Any] = {"bos": "<｜begin▁of▁sentence｜>", "eos": END, "pad": END, "adds_bos": True}


def hybrid() -> Any:
    words = tokenizer(named={"image_token": "<image_placeholder>"}, **START)
    pictures = transformers.DeepseekVLHybridImageProcessor(size=SQUARE, high_res_size={"height": 64, "width": 64})
    return transformers.DeepseekVLHybridProcessor(pictures, words, num_image_tokens=16)


def hybrid_config(processor: Any) -> dict[str, Any]:
    sam = {**CLIP, "image_size": 64, "patch_size": 4, "output_channels": 8, "mlp_dim": 32, "num_pos_feats": 8}
    sizes = {
        "vision_config": {"model_type": "siglip_vision_model", **SIGLIP},
        "high_res_vision_config": {"model_type": "sam_vision_model", **sam, "global_attn_indexes": [1]},
        "text_config": text(processor, model_type="llama"),
    }
    return sizes | ids(processor, image_token_id="<image_placeholder>")


def janus() -> Any:
    named = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    words = tokenizer(named=named, words=("<|User|>", "<|Assistant|>"), **START)
    pictures = transformers.JanusImageProcessor(size=SQUARE)
    return transformers.JanusProcessor(pictures, words, use_default_system_prompt=True, num_image_tokens=16)


def janus_config(processor: Any) -> dict[str, Any]:
    vision = {**CLIP, "image_size": TILE, "patch_size": 4, "projection_dim": 32, "num_image_tokens": 16}
    drawn = {"embed_dim": 8, "num_embeddings": 32, "latent_channels": 8, "base_channels": 32, "num_patches": 4}
    drawn |= {"channel_multiplier": [1, 1], "num_res_blocks": 1, "projection_dim": 32, "image_token_embed_dim": 32}
    sizes = {"vision_config": vision, "vq_config": drawn, "text_config": text(processor, model_type="llama")}
    return sizes | ids(processor, image_token_id="<image_placeholder>")


RECIPES = {
    "deepseek_vl_hybrid": Recipe(hybrid, hybrid_config, (END,), "deepseek_vl"),
    "janus": Recipe(janus, janus_config, (END,), "janus"),
}
