"""Fuyu, GIT, Kosmos-2 and Kosmos-2.5, whose processors put the picture before the text of a question."""

from __future__ import annotations

from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers

from .recipe import CLIP, SPARE, Recipe, ids, text
from .tiled import SQUARE
from .words import SENTENCES, tokenizer


def unigram() -> Any:
    """Fuyu's kind of tokenizer: it puts a blank before every text, and its marks of pictures are ordinary words."""
    marks = ("<unk>", "|ENDOFTEXT|", "<s>", "<0x04>", "|SPEAKER|", "|NEWLINE|")
    learned = {f"▁{word}" for sentence in SENTENCES for word in sentence.split()}
    letters = ("▁", "\n", *map(chr, range(33, 127)))
    pieces = [*((mark, 0.0) for mark in marks), *((word, -2.0) for word in sorted(learned))]
    inner = Tokenizer(models.Unigram([*pieces, *((letter, -9.0) for letter in letters)], unk_id=0))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    end = "|ENDOFTEXT|"
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, pad_token="<unk>")


def fuyu() -> Any:
    small: dict[str, Any] = {"size": {"height": 32, "width": 64}, "patch_size": {"height": 8, "width": 8}}
    pictures = transformers.FuyuImageProcessor(**small)
    return transformers.FuyuProcessor(pictures, unigram())


def fuyu_config(processor: Any) -> dict[str, Any]:
    words = text(processor, model_type="persimmon")
    return {"patch_size": 8, "image_size": 64, "text_config": words} | ids(processor, image_token_id="|SPEAKER|")


def git() -> Any:
    words = tokenizer(bos="[CLS]", eos="[SEP]", pad="[PAD]")
    words.cls_token, words.sep_token = "[CLS]", "[SEP]"
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SQUARE)
    return transformers.GitProcessor(pictures, words)


def git_config(processor: Any) -> dict[str, Any]:
    sizes = text(processor)
    for grouped in ("num_key_value_heads", "head_dim"):
        del sizes[grouped]
    return sizes | {"vision_config": {**CLIP, "image_size": 16, "patch_size": 4}}


WORDS: dict[str, Any] = {"embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 2}
IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def kosmos_text(processor: Any) -> dict[str, Any]:
    words = processor.tokenizer
    return {**WORDS, "vocab_size": len(words) + SPARE, "max_position_embeddings": 4096} | {
        key: getattr(words, key) for key in IDS
    }


def kosmos2() -> Any:
    words = tokenizer(bos="<s>", eos="</s>", pad="<pad>", words=("<unk>",))
    words.unk_token = "<unk>"
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SQUARE)
    return transformers.Kosmos2Processor(pictures, words, 80)


def kosmos2_config(processor: Any) -> dict[str, Any]:
    """Its processor writes 64 ids a picture."""
    vision = {**CLIP, "image_size": 16, "patch_size": 4}
    return {"vision_config": vision, "text_config": kosmos_text(processor), "latent_query_num": 64}


def kosmos2_5() -> Any:
    named = {"boi_token": "<image>", "eoi_token": "</image>", "image_token": "<s>"}
    words = tokenizer(bos="<s>", eos="</s>", pad="<pad>", named=named, words=("<ocr>", "<md>"))
    small: dict[str, Any] = {"patch_size": {"height": 4, "width": 4}}
    pictures = transformers.Kosmos2_5ImageProcessor(**small)
    return transformers.Kosmos2_5Processor(pictures, words, num_image_tokens=4)


def kosmos2_5_config(processor: Any) -> dict[str, Any]:
    """Its processor always gives 4,096 patches, so its tower is as small as it can be."""
    vision = {**CLIP, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8, "patch_embed_hidden_size": 48}
    return {"vision_config": vision, "text_config": kosmos_text(processor), "latent_query_num": 4}


ONE: dict[str, Any] = {"several": False, "without": False, "turns": False}
RECIPES = {
    "fuyu": Recipe(fuyu, fuyu_config, ("|ENDOFTEXT|",), parts=("projector", "language"), **ONE),
    "git": Recipe(git, git_config, ("[SEP]",), **ONE),
    "kosmos2": Recipe(kosmos2, kosmos2_config, ("</s>",), model="kosmos-2", **ONE),
    "kosmos2_5": Recipe(kosmos2_5, kosmos2_5_config, ("</s>",), model="kosmos-2.5", **ONE),
}
