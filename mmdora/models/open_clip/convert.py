"""Converts an open_clip ViT of CLIP's architecture to transformers' `CLIPVisionModel`: same numbers, other names."""

from __future__ import annotations

import re
from typing import Any

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

OUTSIDE = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
INSIDE = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
FUSED = "attn.in_proj_"
"""Prefix of the names of the tensors that hold query, key and value projection stacked, [3 D, D] or [3 D]."""
BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


def as_clip(visual: nn.Module) -> CLIPVisionModel | None:
    """The tower with its weights; None if it is not of CLIP's architecture (ModifiedResNet, timm, LayerScale, …).

    Args:
        visual: a tower of open_clip, with or without the head that makes the embedding.
    """
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
        return None
    (high, wide), (patch, across) = visual.image_size, visual.patch_size
    block: Any = visual.transformer.resblocks[0]
    last: Any = visual.ln_post
    activation = _activation(block)
    if activation is None or high != wide or patch != across:
        return None
    state: dict[str, Tensor] = {}
    for name, tensor in visual.state_dict().items():
        named = _named(name, tensor)
        if named is None:
            return None
        state |= named
    config: Any = CLIPVisionConfig(
        hidden_size=visual.conv1.out_channels,
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(visual.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        image_size=high,
        patch_size=patch,
        hidden_act=activation,
        layer_norm_eps=last.eps,
        projection_dim=visual.output_dim,
    )
    with torch.device("meta"):
        model = CLIPVisionModel(config)
    if {name: tensor.shape for name, tensor in state.items()} != {n: t.shape for n, t in model.state_dict().items()}:
        return None
    model = CLIPVisionModel(config)
    model.load_state_dict(state)
    return model.eval()


def _activation(block: Any) -> str | None:
    """The name in `transformers` of a block's activation; None if the block does not occur in CLIP."""
    if not isinstance(block, ResidualAttentionBlock):
        return None
    gelu = block.mlp.get_submodule("gelu")
    if isinstance(gelu, nn.GELU):
        return "gelu" if gelu.approximate == "none" else "gelu_pytorch_tanh"
    return "quick_gelu" if isinstance(gelu, QuickGELU) else None


def _named(name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    """Name in `transformers` -> tensor, for a tensor of open_clip (it may become several); None if it has no place."""
    if name == "proj":  # Only the image embedding needs this projection.
        return {}
    if name in OUTSIDE:
        return {OUTSIDE[name]: tensor}
    block = BLOCK.fullmatch(name)
    if block is None:
        return None
    layer, inner = f"encoder.layers.{block[1]}.", block[2]
    if inner.startswith(FUSED):
        leaf = inner.removeprefix(FUSED)
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{layer}self_attn.{letter}_proj.{leaf}": part.clone() for letter, part in parts}
    for theirs, ours in INSIDE.items():
        if inner.startswith(theirs):
            return {layer + ours + inner.removeprefix(theirs): tensor}
    return None
