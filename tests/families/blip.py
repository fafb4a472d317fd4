"""BLIP-2 with OPT and InstructBLIP with Vicuna, whose processors have no chat template."""

from __future__ import annotations

from typing import Any

import transformers

from .recipe import CLIP, Recipe, ids, text
from .words import tokenizer

PICTURES: dict[str, Any] = {"size": {"height": 16, "width": 16}}
VISION: dict[str, Any] = {**CLIP, "image_size": 16, "patch_size": 4}
QFORMER: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def blip_2() -> Any:
    words = tokenizer(bos="</s>", eos="</s>", pad="<pad>", adds_bos=True)
    return transformers.Blip2Processor(transformers.BlipImageProcessor(**PICTURES), words, num_query_tokens=4)


def blip_2_config(processor: Any) -> dict[str, Any]:
    words = text(processor, model_type="opt", ffn_dim=48, word_embed_proj_dim=32)
    sizes = {"vision_config": VISION, "qformer_config": {"vocab_size": 64, **QFORMER}, "text_config": words}
    return sizes | {"num_query_tokens": 4} | ids(processor, image_token_index="<image>")


def instructblip() -> Any:
    words = tokenizer(bos="<s>", eos="</s>", pad="<pad>", adds_bos=True)
    asked = tokenizer(bos="[CLS]", eos="[SEP]", pad="[PAD]")  # It adds no start token, so its ids are its own.
    pictures = transformers.BlipImageProcessor(**PICTURES)
    return transformers.InstructBlipProcessor(pictures, words, asked, num_query_tokens=4)


def instructblip_config(processor: Any) -> dict[str, Any]:
    words, known = text(processor, model_type="llama"), len(processor.qformer_tokenizer)
    sizes = {"vision_config": VISION, "qformer_config": {"vocab_size": known, **QFORMER}, "text_config": words}
    return sizes | {"num_query_tokens": 4} | ids(processor, image_token_index="<image>")


RECIPES = {
    "blip_2": Recipe(blip_2, blip_2_config, ("</s>",), model="blip-2", several=False, without=False),
    "instructblip": Recipe(instructblip, instructblip_config, ("</s>",), several=False, without=False, turns=False),
}
