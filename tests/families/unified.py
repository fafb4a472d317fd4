"""Chameleon and Emu3, which read a picture as words of their own, and GOT-OCR 2.0, whose processor writes prompts."""

from __future__ import annotations

from typing import Any

import transformers

from .recipe import CLIP, Recipe, ids, text
from .tiled import SQUARE
from .words import tokenizer

CODES = 32
"""Words of a picture."""
VQ: dict[str, Any] = {"base_channels": 32, "num_res_blocks": 1}
"""Group norms have 32 groups."""
CHAMELEON = tuple(f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(code))}Z" for code in range(CODES))
EMU3 = ("<|extra_200|>", *(f"<|visual token {code:06}|>" for code in range(CODES)))


def chameleon() -> Any:
    named = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    words = tokenizer(bos="<s>", eos="</s>", pad="<pad>", named=named, words=CHAMELEON, adds_bos=True)
    words.add_special_tokens({"sep_token": "<reserved08706>"})
    pictures = transformers.ChameleonImageProcessor(size={"shortest_edge": 16}, crop_size=SQUARE)
    return transformers.ChameleonProcessor(pictures, words, image_seq_length=16)


def chameleon_config(processor: Any) -> dict[str, Any]:
    words = processor.tokenizer
    vq = {**VQ, "embed_dim": 8, "latent_channels": 8, "num_embeddings": CODES, "resolution": 16}
    known = {word: words.convert_tokens_to_ids(word) for word in ("<image>", *CHAMELEON)}
    sizes = text(processor)
    del sizes["head_dim"]
    return sizes | {"vq_config": vq | {"channel_multiplier": [1, 1, 1]}, "vocabulary_map": known}


def emu3() -> Any:
    named = {"image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>"}
    named |= {"image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>"}
    words = tokenizer(bos="<|extra_203|>", eos="<|extra_204|>", pad="<|endoftext|>", named=named, words=EMU3)
    return transformers.Emu3Processor(transformers.Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64), words)


def emu3_config(processor: Any) -> dict[str, Any]:
    vq = {**VQ, "codebook_size": CODES, "channel_multiplier": [1, 1, 1, 1], "hidden_size": 32}
    known = {word: processor.tokenizer.convert_tokens_to_ids(word) for word in ("<image>", *EMU3)}
    return {"vq_config": vq, "text_config": text(processor), "vocabulary_map": known}


def got_ocr2() -> Any:
    words = tokenizer(eos="<|im_end|>", pad="<|endoftext|>", words=("<|im_start|>", "<img>", "</img>", "<imgpad>"))
    pictures = transformers.GotOcr2ImageProcessor(size={"height": 128, "width": 128})
    return transformers.GotOcr2Processor(pictures, words)


def got_ocr2_config(processor: Any) -> dict[str, Any]:
    """Its processor writes 256 tokens a picture, whatever the tower; 64 patches a side become 16."""
    sam = {**CLIP, "image_size": 128, "patch_size": 2, "output_channels": 8, "mlp_dim": 32}
    vision = sam | {"global_attn_indexes": [], "window_size": 8}
    sizes = {"vision_config": vision, "text_config": text(processor, model_type="qwen2")}
    return sizes | {"image_seq_length": 256} | ids(processor, image_token_id="<imgpad>")


NO_TOWER: dict[str, Any] = {"parts": ("language",)}
RECIPES = {
    "chameleon": Recipe(chameleon, chameleon_config, ("</s>",), **NO_TOWER, since="5.23"),
    "emu3": Recipe(emu3, emu3_config, ("<|extra_204|>",), "llava", **NO_TOWER),
    "got_ocr2": Recipe(got_ocr2, got_ocr2_config, ("<|im_end|>",), several=False, without=False),
}
