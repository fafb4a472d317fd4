"""The Qwen-VL line, GLM-4V and PaddleOCR-VL, whose towers keep a picture's resolution."""

from __future__ import annotations

from typing import Any

import transformers

from .recipe import CLIP, QWEN, QWEN_IMAGES, Recipe, ids, text
from .words import tokenizer

SIZE = {"shortest_edge": 16 * 64, "longest_edge": 64 * 64}
"""Pixels of a picture: 16 to 64 tokens of 8 x 8."""
WORDS = ("<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")
VISION = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}


def qwen(kind: str) -> Any:
    """A processor of the line; `kind` is the beginning of its classes' names."""
    words = tokenizer(eos="<|im_end|>", pad="<|endoftext|>", words=(*WORDS, *VISION, "<think>", "</think>"))
    video = getattr(transformers, "Qwen3VLVideoProcessor" if kind == "Qwen3VL" else "Qwen2VLVideoProcessor")
    pictures = transformers.Qwen2VLImageProcessor(**QWEN_IMAGES, size=SIZE)
    return getattr(transformers, f"{kind}Processor")(pictures, words, video(**QWEN_IMAGES, size=SIZE))


def places(processor: Any) -> dict[str, int]:
    return ids(
        processor,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )


def qwen2_vl(processor: Any) -> dict[str, Any]:
    vision = {**QWEN, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, "spatial_merge_size": 2}
    return {"vision_config": vision, "text_config": text(processor, rope_parameters=MROPE), **places(processor)}


def qwen2_5_vl(processor: Any) -> dict[str, Any]:
    vision = {**QWEN, "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1], "spatial_merge_size": 2}
    return {"vision_config": vision, "text_config": text(processor, rope_parameters=MROPE), **places(processor)}


def qwen3_vision() -> dict[str, Any]:
    return {**QWEN, "out_hidden_size": 32, "num_position_embeddings": 64, "spatial_merge_size": 2}


def qwen3_vl(processor: Any, **more: Any) -> dict[str, Any]:
    rope = {**MROPE, "mrope_interleaved": True}
    vision = {**qwen3_vision(), "deepstack_visual_indexes": [0]}
    return {"vision_config": vision, "text_config": text(processor, rope_parameters=rope, **more), **places(processor)}


def qwen3_vl_moe(processor: Any) -> dict[str, Any]:
    return qwen3_vl(processor, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)


def qwen3_5(processor: Any, **more: Any) -> dict[str, Any]:
    rope = {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0}
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
    linear |= {"linear_num_value_heads": 2, "layer_types": ["linear_attention", "full_attention"]}
    words = text(processor, rope_parameters=rope, **linear, **more)
    return {"vision_config": qwen3_vision(), "text_config": words, **places(processor)}


def qwen3_5_moe(processor: Any) -> dict[str, Any]:
    few = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return qwen3_5(processor, **few, shared_expert_intermediate_size=24)


GLM_WORDS = ("[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
GLM_WORDS += ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>")
GLM_WORDS += ("<|video|>", "<think>", "</think>")


def glm() -> Any:
    words = tokenizer(eos="<|endoftext|>", pad="<|endoftext|>", words=GLM_WORDS)
    size = {"shortest_edge": 2 * 16 * 64, "longest_edge": 2 * 64 * 64}  # Both frames of a picture count.
    pictures = transformers.Glm4vImageProcessor(**QWEN_IMAGES, size=size)
    return transformers.Glm4vProcessor(pictures, words, transformers.Glm4vVideoProcessor(**QWEN_IMAGES))


def glm4v(processor: Any) -> dict[str, Any]:
    vision = {**QWEN, "out_hidden_size": 32, "image_size": 32, "spatial_merge_size": 2}
    rope = {**MROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
    words = text(processor, rope_parameters=rope, bos_token_id=None)
    named = ids(
        processor,
        image_token_id="<|image|>",
        video_token_id="<|video|>",
        image_start_token_id="<|begin_of_image|>",
        image_end_token_id="<|end_of_image|>",
        video_start_token_id="<|begin_of_video|>",
        video_end_token_id="<|end_of_video|>",
    )
    return {"vision_config": vision, "text_config": words, **named}


PADDLE = ("<|begin_of_sentence|>", "<|IMAGE_START|>", "<|IMAGE_END|>", "<|video_pad|>")


def paddleocr_vl() -> Any:
    words = tokenizer(bos="<s>", eos="</s>", pad="<unk>", named={"image_token": "<|IMAGE_PLACEHOLDER|>"}, words=PADDLE)
    pictures = transformers.PaddleOCRVLImageProcessor(patch_size=4, merge_size=2, size=SIZE)
    return transformers.PaddleOCRVLProcessor(pictures, words)


def paddleocr_vl_config(processor: Any) -> dict[str, Any]:
    vision = {**CLIP, "image_size": 32, "patch_size": 4, "spatial_merge_size": 2}
    named = ids(
        processor,
        image_token_id="<|IMAGE_PLACEHOLDER|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|IMAGE_START|>",
        vision_end_token_id="<|IMAGE_END|>",
    )
    return {"vision_config": vision, "text_config": text(processor, rope_parameters=MROPE), **named}


ENDS = ("<|im_end|>", "<|endoftext|>")
RECIPES = {
    "qwen2_vl": Recipe(lambda: qwen("Qwen2VL"), qwen2_vl, ENDS, "qwen2_vl"),
    "qwen2_5_vl": Recipe(lambda: qwen("Qwen2_5_VL"), qwen2_5_vl, ENDS, "qwen2_vl"),
    "qwen3_vl": Recipe(lambda: qwen("Qwen3VL"), qwen3_vl, ENDS, "qwen3_vl"),
    "qwen3_vl_moe": Recipe(lambda: qwen("Qwen3VL"), qwen3_vl_moe, ENDS, "qwen3_vl"),
    "qwen3_5": Recipe(lambda: qwen("Qwen3VL"), qwen3_5, ENDS, "qwen3_vl"),
    "qwen3_5_moe": Recipe(lambda: qwen("Qwen3VL"), qwen3_5_moe, ENDS, "qwen3_vl"),
    "glm4v": Recipe(glm, glm4v, ("<|endoftext|>", "<|user|>"), "glm4v"),
    "paddleocr_vl": Recipe(paddleocr_vl, paddleocr_vl_config, ("</s>",), "paddleocr_vl"),
}
