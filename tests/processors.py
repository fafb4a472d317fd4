"""Builds processors of several families from their own classes, around the small tokenizer of tiny-llava."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoProcessor

from mmdora.models.locate import resolve

WORDS = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
IDEFICS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ':\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)


def tokenizer(*words: str) -> Any:
    """The tokenizer of tiny-llava with more special tokens."""
    made = AutoProcessor.from_pretrained(resolve("tiny-llava")).tokenizer
    made.add_special_tokens({"additional_special_tokens": list(words)})
    return made


def qwen(family: str = "Qwen2_5_VL", **images: Any) -> Any:
    """A processor of the Qwen family with patches of 4 pixels, of which 2 x 2 make a token."""
    small = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    images = {**small, "size": {"shortest_edge": 64, "longest_edge": 64 * 64}, **images}
    return getattr(transformers, f"{family}Processor")(
        transformers.Qwen2VLImageProcessor(**images),
        tokenizer(*WORDS),
        getattr(transformers, "Qwen3VLVideoProcessor" if family == "Qwen3VL" else "Qwen2VLVideoProcessor")(**small),
        chat_template=TEMPLATE.replace("IMAGE", "<|vision_start|><image><|vision_end|>"),
    )


def llava_next() -> Any:
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    pictures = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=pinpoints
    )
    return transformers.LlavaNextProcessor(
        pictures, tokenizer(), patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def idefics3() -> Any:
    words = tokenizer(*IDEFICS, *TILES)
    return transformers.Idefics3Processor(transformers.Idefics3ImageProcessor(), words, image_seq_len=64)


def internvl() -> Any:
    words = tokenizer("<IMG_CONTEXT>", "<img>", "</img>", "<video>")
    words.start_image_token, words.end_image_token, words.context_image_token = "<img>", "</img>", "<IMG_CONTEXT>"
    for name in ("start_image", "end_image", "context_image"):
        setattr(words, f"{name}_token_id", words.convert_tokens_to_ids(getattr(words, f"{name}_token")))
    words.video_token = "<video>"
    pictures = transformers.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True)
    return transformers.InternVLProcessor(
        pictures, words, transformers.InternVLVideoProcessor(), image_seq_length=16, chat_template=TEMPLATE
    )


def pixtral() -> Any:
    words = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    return transformers.PixtralProcessor(transformers.PixtralImageProcessor(), words, patch_size=16)


def glm() -> Any:
    words = tokenizer("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>")
    pictures = transformers.Glm4vImageProcessor()
    return transformers.Glm4vProcessor(pictures, words, transformers.Glm4vVideoProcessor(), chat_template=TEMPLATE)


def llava_onevision() -> Any:
    words = tokenizer("<video>")
    pictures = transformers.LlavaOnevisionImageProcessor(
        size={"height": 56, "width": 56}, image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]]
    )
    return transformers.LlavaOnevisionProcessor(
        pictures,
        words,
        transformers.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )


def gemma3() -> Any:
    words = tokenizer("<start_of_image>", "<end_of_image>", "<image_soft_token>")
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    for name, word in names.items():
        setattr(words, name, word)
        setattr(words, f"{name}_id", words.convert_tokens_to_ids(word))
    pictures = transformers.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    template = TEMPLATE.replace("IMAGE", "<start_of_image>")
    return transformers.Gemma3Processor(pictures, words, image_seq_length=4, chat_template=template)


def paligemma() -> Any:
    pictures: Any = transformers.SiglipImageProcessor(size={"height": 56, "width": 56})
    pictures.image_seq_length = 16
    return transformers.PaliGemmaProcessor(pictures, tokenizer(), chat_template=TEMPLATE.replace("IMAGE", "<image>"))


def mllama() -> Any:
    """Llama 3.2 Vision: its processor gives the mask of the cross-attention as a numpy array."""
    words = tokenizer("<|image|>", "<|python_tag|>")
    words.image_token, words.image_token_id = "<|image|>", words.convert_tokens_to_ids("<|image|>")
    pictures = transformers.MllamaImageProcessor(size={"height": 56, "width": 56}, max_image_tiles=2)
    template = "{{ bos_token }}" + TEMPLATE.replace("IMAGE", "<|image|>")
    return transformers.MllamaProcessor(pictures, words, chat_template=template)
