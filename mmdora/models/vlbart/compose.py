"""Composes a VL-BART from a BART and an open_clip tower; the visual embedding between them is new.

`python -m mmdora.models.vlbart.compose OUT --bart facebook/bart-base --tower RN101 --pretrained openai`
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import AutoTokenizer, BartForConditionalGeneration

from mmdora.models.open_clip.config import OpenClipVisionConfig
from mmdora.models.open_clip.tower import image_processor, tower_config
from mmdora.models.vlbart.config import VLBartConfig
from mmdora.models.vlbart.head import VLBartForConditionalGeneration
from mmdora.models.vlbart.processor import VLBartProcessor, added_tokens

BEAMS, LONGEST = 5, 36
"""Number of beams, and most new tokens, in the paper's evaluation."""


def compose(
    bart: BartForConditionalGeneration,
    tokenizer: Any,
    vision: OpenClipVisionConfig,
    *,
    prompts: Mapping[str, str] | None = None,
    order_tokens: int = 100,
    frames: int = 64,
) -> tuple[VLBartForConditionalGeneration, VLBartProcessor]:
    """Make a VL-BART with the weights of `bart` and of the tower.

    VL-BART's own tokens are added to `bart` and `tokenizer` in place.

    Args:
        vision: config from `tower_config`; without `vision_cfg` the model takes precomputed features.
        prompts: see `VLBartProcessor`.
        order_tokens, frames: see `VLBartConfig`.
    """
    tokens = [AddedToken(token, special=True, normalized=False) for token in added_tokens(order_tokens)]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.model_max_length = min(tokenizer.model_max_length, bart.config.max_position_embeddings)
    bart.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = VLBartConfig(
        text_config=bart.config.to_dict(), vision_config=vision, order_tokens=order_tokens, frames=frames
    )
    model = VLBartForConditionalGeneration(config)
    model.model.language_model.load_state_dict(bart.model.state_dict())
    model.final_logits_bias.copy_(bart.final_logits_bias)
    model.generation_config = bart.generation_config
    model.generation_config.num_beams, model.generation_config.max_new_tokens = BEAMS, LONGEST
    if vision.pretrained:
        model.model.vision_tower.refer()
    processor = VLBartProcessor(
        image_processor(vision),
        tokenizer,
        frames=frames,
        max_images=config.max_images,
        prompts=prompts,
        image_tokens=vision.image_tokens,
    )
    return model.eval(), processor


def compose_from(
    bart: str, vision: OpenClipVisionConfig, **options: Any
) -> tuple[VLBartForConditionalGeneration, VLBartProcessor]:
    """Call `compose` with a BART by its hub id or folder."""
    stock: Any = BartForConditionalGeneration.from_pretrained(bart)
    return compose(stock, AutoTokenizer.from_pretrained(bart), vision, **options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose BART and tower."""
    parser.add_argument("--bart", default="facebook/bart-base", help="hub id or folder")
    parser.add_argument("--tower", help="name in open_clip; left out: a model for precomputed features")
    parser.add_argument("--pretrained", help="tag of open_clip or file with the tower's weights")
    parser.add_argument("--grid", type=int, help="adaptive max pool to GRID x GRID tokens (6 for RN101)")
    parser.add_argument("--features", type=int, default=2048, help="width of precomputed features (512 for video)")


def vision_of(options: argparse.Namespace) -> OpenClipVisionConfig:
    if options.tower is None:
        return OpenClipVisionConfig(hidden_size=options.features)
    return tower_config(options.tower, options.pretrained, grid=options.grid)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a VL-BART made of a BART and an open_clip tower.")
    parser.add_argument("out", type=Path)
    add_arguments(parser)
    options = parser.parse_args()
    for part in compose_from(options.bart, vision_of(options)):
        part.save_pretrained(options.out)


if __name__ == "__main__":
    main()
