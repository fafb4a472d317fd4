"""Builds a VL-BART of some ten thousand parameters: a byte-level BART with a ModifiedResNet or ViT tower."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BartConfig, BartForConditionalGeneration, BartTokenizer

from mmdora.models.open_clip.config import OpenClipVisionConfig
from mmdora.models.open_clip.tower import tower_config
from mmdora.models.vlbart.compose import compose

RESNET = {"embed_dim": 12, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 2, "head_width": 16}}
VIT = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
}
TOWERS = {"resnet": RESNET, "vit": VIT}
ORDER = 24


def small_tokenizer() -> Any:
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    return BartTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])


def small_bart(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_position_embeddings": 96}
    depths = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(vocab_size=261, init_std=0.4, **{**sizes, **depths, **changes})
    bart = BartForConditionalGeneration(config).eval()
    bart.final_logits_bias.normal_(std=0.1)
    return bart


def small_vlbart(tower: str | None = "resnet", seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """Make model and processor. The visual parts get the scale of the text, so that a mistake in them shows."""
    bart = small_bart(seed)
    vision = OpenClipVisionConfig(hidden_size=64) if tower is None else tower_config(TOWERS[tower], **options)
    model, processor = compose(bart, small_tokenizer(), vision, order_tokens=ORDER, frames=6)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shy = "vision_tower" in name and name.endswith(("bn3.weight", ".bias"))  # These start at zero.
            if shy or "visual_embedding" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(0.05)
    return model.eval(), processor


def picture(seed: int, side: int = 80) -> Image.Image:
    pixels = torch.rand(side // 8, side // 10, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((pixels * 255).byte().numpy()).resize((side, side + 12))


TEXTS = ["What colour is the box?", "left?", "Is the circle above the square, or is it below?"]
IMAGES = [[picture(1)], [], [picture(2), picture(3)]]
