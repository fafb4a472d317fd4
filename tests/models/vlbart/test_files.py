"""VL-BART on disk: with its tower, with a tower by reference, without."""

from typing import Any, cast

import pytest
import torch
from shrunken_vlbart import IMAGES, ORDER, TEXTS, small_tokenizer, small_vlbart
from transformers import AutoModelForImageTextToText

import mmdora
from mmdora.errors import MmdoraError
from mmdora.models.vlbart.head import VLBartForConditionalGeneration


@torch.no_grad()
@pytest.mark.parametrize("tower", ["resnet", "vit", None])
def test_saved_and_loaded_with_its_tower(tmp_path, tower):
    model, processor = small_vlbart(tower)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, its_processor = mmdora.load(tmp_path)
    assert isinstance(loaded, VLBartForConditionalGeneration)
    loaded = cast(Any, loaded)
    if tower is None:
        batch = its_processor(text=TEXTS[:1], features=[torch.ones(2, 4, 64)])
    else:
        batch = its_processor(text=TEXTS, images=IMAGES)
    assert torch.equal(loaded.generate(**batch), model.generate(**batch))
    assert loaded.generation_config.num_beams == 5 and loaded.generation_config.max_new_tokens == 36
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    model.to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "bf16").dtype == torch.bfloat16


def names_in(folder):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_tower_by_reference(tmp_path):
    included, _ = small_vlbart()
    weights = tmp_path / "tower.pt"
    torch.save(included.model.vision_tower.visual.state_dict(), weights)
    model, _ = small_vlbart(pretrained=str(weights))
    vision = model.model.vision_tower
    vision.refer()  # the fixture has shaken it
    model.save_pretrained(tmp_path / "out")
    assert not any("vision_tower" in name for name in names_in(tmp_path / "out"))
    opened: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    loaded, info = opened
    assert not info["missing_keys"]
    for name, value in vision.state_dict().items():
        assert torch.equal(loaded.model.vision_tower.state_dict()[name], value), name
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert not any("vision_tower" in name for name in names_in(again))

    with torch.no_grad():  # a tower that was trained is no longer its reference's
        loaded.model.vision_tower.visual.conv1.weight[0, 0, 0, 0] += 1e-3
    loaded.save_pretrained(again)
    assert sum("vision_tower" in name for name in names_in(again)) == len(vision.state_dict())
    kept = AutoModelForImageTextToText.from_pretrained(again)
    changed = loaded.model.vision_tower.visual.conv1.weight
    assert torch.equal(kept.model.vision_tower.visual.conv1.weight, changed)

    torch.save({**vision.visual.state_dict(), "conv1.weight": changed}, weights)
    with pytest.raises(MmdoraError, match="not the tower's weights"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    weights.unlink()
    with pytest.raises(MmdoraError, match="cannot be loaded"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "out")


def test_a_checkpoint_without_its_tower_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model, _ = small_vlbart()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in state.items() if "layer4" not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(MmdoraError, match="tensors of the tower are missing"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_added_tokens_are_the_last_rows():
    model, processor = small_vlbart()
    assert model.model.language_model.shared.weight.shape[0] == len(processor.tokenizer) == 261 + 100 + ORDER
    ids = processor.tokenizer.convert_tokens_to_ids(["<vis_extra_id_0>", "<vis_extra_id_3>", "<extra_id_99>"])
    assert ids == [384, 381, 261]
    assert len(small_tokenizer()) == 261
