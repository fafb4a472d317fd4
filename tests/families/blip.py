"""BLIP-2 with OPT, InstructBLIP with Vicuna, and Florence-2, whose processors have no chat template."""

from __future__ import annotations

from typing import Any

import transformers
from tokenizers.processors import TemplateProcessing

from .recipe import CLIP, SPARE, Recipe, ids, text
from .words import tokenizer

SIDE = {"height": 16, "width": 16}
PICTURES: dict[str, Any] = {"size": SIDE}
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


def florence2() -> Any:
    words = tokenizer(bos="<s>", eos="</s>", pad="<pad>", named={"image_token": "<image>"}, words=("<loc_0>",))
    known = [(word, words.convert_tokens_to_ids(word)) for word in ("<s>", "</s>")]
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=known)
    # The average over the picture's places comes before the 16 places themselves.
    pictures: Any = transformers.CLIPImageProcessor(size=SIDE, crop_size=SIDE, do_center_crop=False)
    pictures.image_seq_length = 5
    return transformers.Florence2Processor(pictures, words)


def florence2_config(processor: Any) -> dict[str, Any]:
    """DaViT halves the sides of its picture behind the first step, so that 16 pixels become 2 x 2 places."""
    words = processor.tokenizer
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 512}
    sizes |= {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in (("ffn_dim", 48),)}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": len(words) + SPARE}
    known = {f"{key}_token_id": getattr(words, f"{key}_token_id") for key in ("pad", "bos", "eos")}
    known |= {"decoder_start_token_id": words.eos_token_id, "forced_eos_token_id": words.eos_token_id}
    vision = {"depths": [1, 1], "embed_dim": [16, 32], "num_heads": [2, 2], "num_groups": [2, 2]}
    vision |= {"patch_size": [3, 3], "patch_stride": [4, 2], "patch_padding": [1, 1], "patch_prenorm": [False, True]}
    vision |= {"window_size": 4, "projection_dim": 32}
    named = ids(processor, image_token_id="<image>")
    return {"vision_config": vision, "text_config": {"model_type": "bart", **sizes, **known}, **named}


RECIPES = {
    "blip_2": Recipe(blip_2, blip_2_config, ("</s>",), model="blip-2", several=False, without=False),
    "instructblip": Recipe(instructblip, instructblip_config, ("</s>",), several=False, without=False, turns=False),
    "florence2": Recipe(florence2, florence2_config, ("</s>",), several=False, without=False, turns=False),
}
