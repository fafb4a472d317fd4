"""Gemma 3, Gemma 3n, Gemma 4 and PaliGemma."""

from __future__ import annotations

from typing import Any

import transformers

from .recipe import CLIP, Recipe, ids, text
from .tiled import SIGLIP, SQUARE
from .words import tokenizer

TURNS = ("<start_of_turn>", "<end_of_turn>", "<unk>", "<mask>")
GEMMA: dict[str, Any] = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "adds_bos": True}


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


def gemma3n() -> Any:
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    named |= {"audio_token": "<audio_soft_token>", "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>"}
    return transformers.Gemma3nProcessor(
        transformers.Gemma3nAudioFeatureExtractor(),
        transformers.SiglipImageProcessor(size={"height": 64, "width": 64}, do_normalize=False),
        tokenizer(named=named, words=TURNS, **GEMMA),
        image_seq_length=256,
    )


def gemma3n_config(processor: Any) -> dict[str, Any]:
    """Its tower is timm's MobileNetV5, which gives 16 x 16 features of width 2048 of any picture.

    The audio tower is here for its weights alone.
    """
    layers = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    words = text(processor, layer_types=layers, hidden_size_per_layer_input=8, laurel_rank=4, num_kv_shared_layers=2)
    words |= {"num_hidden_layers": 4, "activation_sparsity_pattern": [0.0] * 4, "altup_num_inputs": 2}
    words["vocab_size_per_layer_input"] = words["vocab_size"]
    vision = {"model_args": {"channel_multiplier": 0.05}, "hidden_size": 2048, "vocab_size": 8}
    audio = {"hidden_size": 16, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "vocab_size": 8}
    audio |= {"sscp_conv_channel_size": [4, 2], "conf_attention_context_left": 3}
    vision["vocab_offset"], audio["vocab_offset"] = words["vocab_size"], words["vocab_size"] + 8
    named = {"boi_token_id": "<start_of_image>", "eoi_token_id": "<end_of_image>", "boa_token_id": "<start_of_audio>"}
    named |= {"eoa_token_id": "<end_of_audio>", "audio_token_id": "<audio_soft_token>"}
    sizes = {"vision_config": vision, "audio_config": audio, "text_config": words, "vision_soft_tokens_per_image": 256}
    return sizes | ids(processor, image_token_id="<image_soft_token>", **named)


def paligemma() -> Any:
    pictures: Any = transformers.SiglipImageProcessor(size=SQUARE)
    pictures.image_seq_length = 16
    # The processor writes the start token itself and switches that of the tokenizer off.
    words = tokenizer(named={"image_token": "<image>"}, words=TURNS, **{**GEMMA, "adds_bos": False})
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


def gemma4() -> Any:
    named = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>"}
    named |= {"boa_token": "<|audio>", "eoa_token": "<audio|>"}
    words = tokenizer(named=named, words=("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"), **GEMMA)
    small: dict[str, Any] = {"patch_size": 4, "max_soft_tokens": 70, "pooling_kernel_size": 2}
    return transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(),
        transformers.Gemma4ImageProcessor(**small),
        words,
        transformers.Gemma4VideoProcessor(**small),
        image_seq_length=70,
    )


def gemma4_config(processor: Any) -> dict[str, Any]:
    layers = ["sliding_attention", "full_attention"]
    words = text(processor, layer_types=layers, hidden_size_per_layer_input=8, global_head_dim=16)
    words["vocab_size_per_layer_input"] = words["vocab_size"]
    vision = {**CLIP, "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "pooling_kernel_size": 2}
    vision |= {"use_clipped_linears": True, "position_embedding_size": 512}
    named = {"boi_token_id": "<|image>", "eoi_token_id": "<image|>", "boa_token_id": "<|audio>"}
    named |= {"eoa_token_index": "<audio|>", "audio_token_id": "<|audio|>", "video_token_id": "<|video|>"}
    return {"vision_config": vision, "text_config": words} | ids(processor, image_token_id="<|image|>", **named)


NOT_PROJECTOR = ("vision", "language")
RECIPES = {
    "gemma3": Recipe(
        gemma3, gemma3_config, ("<eos>", "<end_of_turn>"), "gemma3", parts=NOT_PROJECTOR, full=("projector",)
    ),
    "gemma3n": Recipe(
        gemma3n,
        gemma3n_config,
        ("<eos>", "<end_of_turn>"),
        "gemma3n",
        parts=("projector", "language"),
        since="5.23",
    ),
    "gemma4": Recipe(gemma4, gemma4_config, ("<eos>", "<turn|>"), "gemma4"),
    "paligemma": Recipe(paligemma, paligemma_config, ("<eos>",), without=False, turns=False),
    "paligemma2": Recipe(paligemma, paligemma2_config, ("<eos>",), model="paligemma", without=False, turns=False),
}
