"""open_clip's ViTs as CLIPVisionModel: every layer's tokens against open_clip's own forward."""

from typing import Any

import open_clip
import pytest
import torch

from mmdora.models.open_clip.convert import as_clip

VIT = {"image_size": 32, "layers": 3, "width": 16, "head_width": 8, "patch_size": 8}


def tower(quick_gelu=False, **changes):
    """open_clip's tower, loud enough for a mistake to be heard: biases and norms are no longer 0 and 1."""
    torch.manual_seed(5)
    settings: Any = VIT | changes
    text: Any = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    visual: Any = open_clip.CLIP(12, settings, text, quick_gelu=quick_gelu).visual.eval()
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return visual


@torch.no_grad()
@pytest.mark.parametrize(
    ("quick", "changes"),
    [(True, {}), (False, {}), (False, {"act_kwargs": {"approximate": "tanh"}}), (True, {"mlp_ratio": 3.0}),
     (False, {"norm_kwargs": {"eps": 1e-2}})],
    ids=["quick gelu", "gelu", "tanh gelu", "another mlp", "another eps"],
)  # fmt: skip
def test_every_layer_gives_open_clips_tokens(quick, changes):
    visual, pixels = tower(quick, **changes), torch.randn(2, 3, 32, 32)
    ours = as_clip(visual)
    assert ours is not None and ours.config.image_size == 32 and ours.config.patch_size == 8
    states = []
    for block in visual.transformer.resblocks:
        block.register_forward_hook(lambda module, inputs, output: states.append(output))
    visual.forward_intermediates(pixels)
    found = ours(pixels, output_hidden_states=True).hidden_states
    for mine, theirs in zip(found[1:], states, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-5)
    pooled = ours(pixels).pooler_output @ visual.proj
    torch.testing.assert_close(pooled, visual(pixels), rtol=1e-5, atol=5e-5)
    assert states[0].abs().max() > 1


@torch.no_grad()
def test_the_two_activations_are_told_apart():
    pixels = torch.randn(2, 3, 32, 32)
    quick, plain = (as_clip(tower(flag)) for flag in (True, False))
    assert quick is not None and plain is not None
    assert (quick(pixels).last_hidden_state - plain(pixels).last_hidden_state).abs().max() > 1e-3


@pytest.mark.parametrize(
    "changes",
    [{"ls_init_value": 0.1}, {"no_ln_pre": True}, {"image_size": (32, 40)},
     {"attentional_pool": True, "attn_pooler_heads": 2}, {"block_type": "custom"}, {"qk_norm": True},
     {"layers": [1, 1, 1, 1], "width": 4, "head_width": 16}],
    ids=["layer scale", "no first norm", "not square", "attention pool", "other blocks", "qk norm", "resnet"],
)  # fmt: skip
def test_what_clip_is_not_is_not_converted(changes):
    assert as_clip(tower(**changes)) is None
