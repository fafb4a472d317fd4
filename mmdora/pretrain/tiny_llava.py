"""Builds `tiny-llava` as it is before LLaVA's two stages: architecture, tokenizer, processor, and a trained tower.

`python -m mmdora.pretrain.tiny_llava OUT` writes it as an ordinary checkpoint folder. The two stages of
`configs/tiny/pretrain_*.yaml` then train it. `make pretrain` does all of this.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mmdora.data_prep import scenes
from mmdora.outputs.folder import check_new_folder
from mmdora.pretrain.tiny_llava_tower import train_tower_of

SIDE, PATCH, VOCABULARY = 64, 8, 2048  # Sides of picture and patch in pixels; tokens of the tokenizer.
IMAGE, PAD, BOS, EOS = "<image>", "<pad>", "<s>", "</s>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% for part in message['content'] %}{{ part['text'] }} {% endfor %}"
    "{% elif message['role'] == 'user' %}USER:"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %} ASSISTANT:"
    "{% else %}{% generation %}{% for part in message['content'] %} {{ part['text'] }}{% endfor %}{{ eos_token }}"
    "{% endgeneration %}{% endif %}{% endfor %}"
)


def build(folder: Path, seed: int = 0) -> None:
    """Write the untrained model with its processor to `folder`."""
    torch.manual_seed(seed)
    processor = make_processor()
    model = LlavaForConditionalGeneration(make_config(processor.tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_config(tokenizer: Any) -> LlavaConfig:
    """The model's config: pictures of 64 x 64 pixels as 64 tokens, 2.2 M parameters, tied embeddings."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=1024,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def make_processor() -> LlavaProcessor:
    """The processor, with a byte-level BPE tokenizer trained on drawn scenes and on Python's own documentation.

    Working on bytes, the tokenizer can encode any text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[PAD, BOS, EOS, IMAGE],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"height": SIDE, "width": SIDE},
            do_center_crop=False,
            crop_size={"height": SIDE, "width": SIDE},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=wrapped,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


DOCUMENTED = """
argparse collections contextlib csv datetime decimal difflib doctest email enum fractions functools heapq
inspect itertools json logging math pathlib random re shutil statistics string subprocess tempfile textwrap
threading tokenize typing unittest urllib.parse uuid zipfile
"""


def _corpus() -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(4000):
        things, _ = scenes.scene(rng)
        for question, answer in scenes.conversation(rng, things):
            yield f"USER: {question} ASSISTANT: {answer}"
    yield from documentation()


def documentation() -> Iterator[str]:
    """Yield the docstrings of standard modules: plain English that comes with every Python."""
    for name in DOCUMENTED.split():
        module = importlib.import_module(name)
        for thing in (module, *(value for key, value in sorted(vars(module).items()) if not key.startswith("_"))):
            yield inspect.getdoc(thing) or ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write tiny-llava as it is before LLaVA's two stages.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tower-steps", type=int, default=2400, help="0 leaves the tower untrained")
    options = parser.parse_args()
    check_new_folder(options.out)
    build(options.out)
    if options.tower_steps:
        print(train_tower_of(options.out, steps=options.tower_steps))


if __name__ == "__main__":
    main()
