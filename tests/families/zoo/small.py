"""Tiny models of every architecture: the default config of each with the sizes of its layers made small."""

from __future__ import annotations

from types import NoneType
from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..checkpoints import RECIPES

ARCHITECTURES = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
"""Every model type of transformers' image-text-to-text registry."""
TEXT_WIDTH, VISION_WIDTH, VOCABULARY = 32, 16, 160
COMMON: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_layers": 2,
    "depth": 2,
    "layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 2,
    "attention_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "mlp_dim": 48,
    "d_ff": 48,
    "d_kv": 16,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "intermediate_size_mlp": 48,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 512,
    "vocab_size": VOCABULARY,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
"""Name of a size in a config -> a small one. A config gets those that it has."""
TEXT: dict[str, Any] = {"hidden_size": TEXT_WIDTH, "d_model": TEXT_WIDTH, "embed_dim": TEXT_WIDTH, "head_dim": 16}
TEXT |= {"projection_dim": TEXT_WIDTH, "hidden_dim": TEXT_WIDTH, "projector_hidden_size": 24}
VISION: dict[str, Any] = {"hidden_size": VISION_WIDTH, "embed_dim": VISION_WIDTH, "head_dim": 8}
VISION |= {"out_hidden_size": TEXT_WIDTH, "image_size": 32, "intermediate_size": 32, "patch_size": 8}
VISION |= {"projection_dim": TEXT_WIDTH}
SEEING = ("vision", "image", "visual", "vit")


def small(name: str) -> Any:
    """The config of an architecture with small sizes: that of `tests/families`, or the default one shrunk.

    Raises:
        Exception: whatever the config's class raises of such sizes.
    """
    cls = CONFIG_MAPPING[name]
    if name in FROM_FAMILIES:
        recipe = RECIPES[name]
        return cls(**recipe.config(recipe.make_processor()))
    return cls(**_joined(_shrunk(cls(), sees=False), OWN.get(name, {})))


def _shrunk(default: Any, *, sees: bool) -> dict[str, Any]:
    sizes, fields = COMMON | (VISION if sees else TEXT), vars(default)
    known = fields.keys() | (getattr(default, "attribute_map", None) or {}).keys()
    shrunk: dict[str, Any] = {
        key: value
        for key, value in sizes.items()
        if key in known and (key == "head_dim" or not isinstance(fields.get(key, 0), (list, tuple, dict, NoneType)))
    }
    for number, (key, value) in enumerate(sorted(_ids(default).items())):
        shrunk[key] = value if value < 3 else 3 + number
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict) and "mrope_section" in rope:
        shrunk["rope_parameters"] = rope | {"mrope_section": [2, 1, 1] if "qk_rope_head_dim" in fields else [2, 3, 3]}
    for key in getattr(default, "sub_configs", None) or {}:
        sub = fields.get(key)
        if sub is not None and not isinstance(sub, dict):
            looks = any(word in key for word in SEEING)
            shrunk[key] = {"model_type": sub.model_type, **_shrunk(sub, sees=looks)}
    return shrunk


def _joined(tree: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A tree of settings with those of another in their places."""
    deeper = {key: _joined(tree[key], value) for key, value in own.items() if key.endswith("_config")}
    return tree | own | deeper


def _ids(config: Any) -> dict[str, int]:
    """The keys of a config that hold the id of a token."""
    ends = ("_token_id", "_token_index", "_token_idx")
    return {key: value for key, value in vars(config).items() if key.endswith(ends) and isinstance(value, int)}


FROM_FAMILIES = ("chameleon", "emu3", "gemma3n", "gemma4", "janus", "deepseek_vl_hybrid", "llama4")
"""Architectures whose sizes depend on each other in more ways than the rules know."""
TIMM = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": [28, 28], "patch_size": 14, "global_pool": ""}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
FOUR = {"depths": [1] * 4, "embed_dim": [16] * 4, "num_heads": [2] * 4, "num_groups": [2] * 4}
OWN: dict[str, dict[str, Any]] = {
    "apertus1p5": {"audio_config": {"codebook_dim": 32}, "text_config": {"vocab_size": 270_000}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": ROPE}}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"]}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}},
    "dots3_note": {
        "vision_config": {
            "pyramid_num_routed": [-1, 2],
            "adapter_in_dim": VISION_WIDTH,
            "adapter_out_dim": TEXT_WIDTH,
        }
    },
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": ROPE | {"mrope_section": [3, 3, 2]}}},
    "florence2": {"vision_config": FOUR},
    "glm5_next": {"text_config": {"qk_rope_head_dim": 0}},
    "granite4_vision": {
        "vision_config": {"hidden_size": 64},
        "deepstack_layer_map": [[0, 0], [1, 1]],
        "spatial_target_layers": [0, 1, 0, 1],
        "downsample_rate": "1/2",
    },
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "hy_v4_vl": {"text_config": {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}}},
    "inkling2": {"vision_config": {"text_hidden_size": TEXT_WIDTH}},
    "inkling2_loop": {"vision_config": {"text_hidden_size": TEXT_WIDTH}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "muse_spark": {"audio_config": {"num_hidden_layers": 4, "out_hidden_size": TEXT_WIDTH}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "perception_lm": {"vision_config": {"architecture": "vit_pe_core_large_patch14_336", "model_args": TIMM}},
}
"""Model type -> keys of its config that the rules do not fit."""
NOT_BUILT = {"evolla": "reads proteins, and AutoModelForImageTextToText does not take its config"}
"""Model type -> why it is left out."""


def build(name: str, seed: int = 0) -> Any:
    """A random model of an architecture on the CPU, in eval mode, with no weight at zero."""
    torch.manual_seed(seed)
    model: Any = AutoModelForImageTextToText.from_config(small(name)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif not bool(parameter.any()):
                parameter.normal_(std=0.1)
    return model
