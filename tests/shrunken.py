"""Builds vision-language models of a few thousand parameters from their own configs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mmdora.adapt.inject import trainable_parameters

CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
CLIP |= {"image_size": 8, "patch_size": 4}
TEXT = {"vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12, "pad_token_id": 0}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}}
QWEN = {"depth": 2, "num_heads": 2, "patch_size": 4, "in_channels": 3}

CONFIGS: dict[str, dict[str, Any]] = {
    "llava": {"vision_config": {"model_type": "clip_vision_model", **CLIP}, "text_config": TEXT},
    "llava_next": {"vision_config": {"model_type": "clip_vision_model", **CLIP}, "text_config": TEXT},
    "llava_onevision": {
        "vision_config": {"model_type": "siglip_vision_model", **CLIP},
        "text_config": {"model_type": "qwen2", **TEXT},
    },
    "qwen2_vl": {"vision_config": {**QWEN, "embed_dim": 16, "hidden_size": 24}, "text_config": {**TEXT, **ROPE}},
    "qwen2_5_vl": {
        "vision_config": {**QWEN, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 24},
        "text_config": {**TEXT, **ROPE},
    },
    "qwen3_vl": {
        "vision_config": {
            **QWEN,
            "hidden_size": 16,
            "intermediate_size": 32,
            "out_hidden_size": 24,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        "text_config": {**TEXT, **ROPE},
    },
    "paligemma": {
        "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **CLIP},
        "text_config": {"model_type": "gemma", **TEXT},
        "projection_dim": 24,
    },
    "gemma3": {
        "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **CLIP},
        "text_config": TEXT,
        "mm_tokens_per_image": 4,
    },
    "idefics3": {"vision_config": CLIP, "text_config": {"model_type": "llama", **TEXT}},
    "smolvlm": {"vision_config": CLIP, "text_config": {"model_type": "llama", **TEXT}},
    "internvl": {
        "vision_config": {**CLIP, "image_size": [8, 8], "patch_size": [4, 4]},
        "text_config": {"model_type": "qwen2", **TEXT},
    },
    "blip-2": {
        "vision_config": CLIP,
        "qformer_config": {
            "vocab_size": 64,
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 20,
            "encoder_hidden_size": 16,
        },
        "text_config": {
            "model_type": "opt",
            "vocab_size": 64,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 40,
            "word_embed_proj_dim": 24,
        },
    },
    "mistral3": {
        "vision_config": {"model_type": "pixtral", **CLIP, "head_dim": 8},
        "text_config": {"model_type": "mistral", **TEXT},
    },
    "mllama": {
        "vision_config": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "intermediate_size": 32,
            "vision_output_dim": 32,
            "image_size": 8,
            "patch_size": 4,
            "intermediate_layers_indices": [0],
        },
        "text_config": {
            **{key: value for key, value in TEXT.items() if key != "head_dim"},
            "num_hidden_layers": 3,
            "cross_attention_layers": [1],
        },
    },
}


def shrunken(name: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of an architecture, on the CPU, in eval mode."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[name](**{**CONFIGS[name], **changes})
    return AutoModelForImageTextToText.from_config(config).eval()


def llava_inputs(rows: int = 2) -> dict[str, torch.Tensor]:
    """A batch for `shrunken("llava", image_token_index=3)`: four visual tokens and some text."""
    generator = torch.Generator().manual_seed(5)
    text = torch.randint(4, 64, (rows, 6), generator=generator)
    ids = torch.cat([text[:, :1], torch.full((rows, 4), 3), text[:, 1:]], 1)
    return {"input_ids": ids, "pixel_values": torch.randn(rows, 3, 8, 8, generator=generator)}


def shrunken_llava(seed: int = 0, **changes: Any) -> Any:
    return shrunken("llava", seed, image_token_index=3, **changes)


def shrunken_llama(seed: int = 0) -> Any:
    """A random Llama without a tower, on the CPU, in eval mode."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = dict(TEXT)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**settings)).eval()


def shake(model: Any) -> None:
    """Change every parameter that trains, so that an adapter that is lost or put in a wrong place shows."""
    torch.manual_seed(3)
    with torch.no_grad():
        for _, parameter, _, kind in trainable_parameters(model):
            if kind == "magnitude":
                parameter *= 1 + 0.2 * torch.rand_like(parameter)
            else:
                parameter += 0.05 * torch.randn_like(parameter)
