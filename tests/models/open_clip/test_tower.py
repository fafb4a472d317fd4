"""Tokens of open_clip towers against open_clip's own forward, and weights by reference."""

import json
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from shrunken_vlbart import RESNET, VIT, picture
from torch.nn import functional as F

from mmdora.errors import MmdoraError
from mmdora.models.open_clip.config import OpenClipVisionConfig
from mmdora.models.open_clip.tower import OpenClipVisionModel, image_processor, tower_config

TEXT = {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1}


def clip(config, seed=3):
    """open_clip's own model, with noise on every parameter and running mean."""
    torch.manual_seed(seed)
    text: Any = TEXT
    model: Any = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text).eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for name, b in model.named_buffers() if "running_mean" in name)]:
            tensor.add_(torch.randn_like(tensor) * 0.2)
    return model


def tower(config, folder, **options):
    """Our tower with the weights of `clip(config)`, and that model."""
    theirs = clip(config)
    torch.save(theirs.state_dict(), folder / "clip.pt")
    ours = OpenClipVisionModel(tower_config(config, str(folder / "clip.pt"), **options)).eval()
    ours.refer()
    return ours, theirs


@torch.no_grad()
def test_resnet_grid_is_layer4_max_pooled(tmp_path):
    big = {**RESNET, "vision_cfg": {**RESNET["vision_cfg"], "image_size": 96}}
    ours, theirs = tower(big, tmp_path, grid=2)
    seen = []
    theirs.visual.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output))
    pixels = torch.randn(2, 3, 96, 96)
    theirs.encode_image(pixels)
    assert seen[0].shape[2:] == (3, 3)
    expected = F.adaptive_max_pool2d(seen[0], 2).flatten(2).transpose(1, 2)
    found = ours(pixels).last_hidden_state
    assert found.shape == (2, 4, ours.config.hidden_size)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not any("attnpool" in name for name in ours.state_dict())
    torch.testing.assert_close(ours.frames(pixels), seen[0].amax((2, 3)), rtol=0, atol=0)


@torch.no_grad()
def test_vit_patches_are_open_clips_tokens(tmp_path):
    ours, theirs = tower(VIT, tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    theirs.visual.output_tokens = True
    tokens = theirs.visual(pixels)[1]
    assert tokens.shape == (2, 16, 16)
    torch.testing.assert_close(ours(pixels).last_hidden_state, tokens)
    assert "visual.proj" not in ours.state_dict()


@torch.no_grad()
@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_pooled_is_the_image_embedding(tmp_path, config):
    ours, theirs = tower(config, tmp_path, feature="pooled")
    pixels = torch.randn(2, 3, config["vision_cfg"]["image_size"], config["vision_cfg"]["image_size"])
    torch.testing.assert_close(ours(pixels).last_hidden_state[:, 0], theirs.encode_image(pixels))
    torch.testing.assert_close(ours.frames(pixels), theirs.encode_image(pixels))


@pytest.mark.parametrize("layout", ["clip.safetensors", "tower.pt", "wrapped.pt"])
def test_weights_from_every_layout_of_a_file(tmp_path, layout):
    model = clip(VIT)
    if layout == "clip.safetensors":
        save_file(model.state_dict(), tmp_path / layout)
    elif layout == "tower.pt":
        torch.save(model.visual.state_dict(), tmp_path / layout)
    else:
        state = {f"module.{name}": value for name, value in model.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / layout)
    ours = OpenClipVisionModel(tower_config(VIT, str(tmp_path / layout)))
    ours.refer()
    assert torch.equal(ours.visual.conv1.weight, model.visual.conv1.weight)


def test_a_named_model_of_open_clip(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**VIT, "text_cfg": TEXT}}))
    theirs = clip(VIT)
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    config = tower_config(f"local-dir:{tmp_path}")
    assert (config.hidden_size, config.image_size) == (16, 32)
    ours = OpenClipVisionModel(config)
    ours.refer()
    assert torch.equal(ours.visual.conv1.weight, theirs.visual.conv1.weight)
    named = tower_config("RN101", "openai", grid=6)
    assert (named.hidden_size, named.image_size, named.pretrained) == (2048, 224, "openai")
    assert tower_config("ViT-B-32", "openai").quick_gelu and not tower_config("ViT-B-32").quick_gelu


def test_batch_norms_keep_their_statistics(tmp_path):
    ours, _ = tower(RESNET, tmp_path)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    pixels = torch.randn(4, 3, 64, 64)
    expected = ours(pixels).last_hidden_state
    ours.train()
    torch.testing.assert_close(ours(pixels).last_hidden_state, expected, rtol=0, atol=0)
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


def test_images_are_squashed_as_open_clip_does():
    config = tower_config("RN101", "openai")
    image = picture(0, 160)
    squash: Any = open_clip.image_transform(224, is_train=False, resize_mode="squash", interpolation="bicubic")
    theirs = squash(image)
    ours = image_processor(config)(image, return_tensors="pt")["pixel_values"][0]
    assert ours.shape == (3, 224, 224)
    # theirs rounds to 8 bits in PIL, ours in torchvision: a step of one level in 256
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2.1 / 255 / 0.26)
    assert (ours - theirs).abs().mean() < 0.5 / 255 / 0.26


def test_mistakes(tmp_path):
    with pytest.raises(MmdoraError, match="no model 'RN102'"):
        tower_config("RN102")
    with pytest.raises(MmdoraError, match="no map of tokens"):
        tower_config("coca_ViT-B-32")
    (tmp_path / "text.pt").write_text("not weights")
    for file, reason in (("text.pt", "cannot be loaded"), ("other.pt", "visual|missing or of another shape")):
        torch.save(clip(RESNET).state_dict(), tmp_path / "other.pt")
        with pytest.raises(MmdoraError, match=reason):
            OpenClipVisionModel(tower_config(VIT, str(tmp_path / file))).refer()
    with pytest.raises(MmdoraError, match="no-such-tag"):
        OpenClipVisionModel(tower_config("RN50", "no-such-tag")).refer()
    with pytest.raises(MmdoraError, match="no image tower"):
        OpenClipVisionModel(OpenClipVisionConfig())(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="use 'grid' or 'pooled'"):
        tower_config(VIT, feature="mean")
