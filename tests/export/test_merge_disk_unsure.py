"""Where a merge from disk cannot be sure, it says why; another base is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from merged_bases import HEAD, NORM, TREE_NORM, build, edit, from_disk, tensors, write_adapter
from safetensors.torch import load_file, save_file
from shrunken import shrunken

from mmdora.errors import MmdoraError
from mmdora.export.layout import save_checkpoint
from mmdora.export.merge_disk import DiskMerge
from mmdora.export.shards import UnsureError


def no_safetensors(folder: Path) -> None:
    found = tensors(folder)
    edit(folder, lambda tensors: None)
    torch.save(found, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def a_cut_file(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-2])


def a_lost_file(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].unlink()


def quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_safetensors, r"has no model\.safetensors"),
        (a_cut_file, "is cut off"),
        (a_lost_file, r"safetensors is missing"),
        (quantised, "the base is quantised"),
        (lambda f: edit(f, lambda t: t.pop(NORM)), r"no file holds model\.language_model\.norm\.weight"),
        (lambda f: edit(f, lambda t: t.update(stray=torch.ones(2))), "has no place for stray"),
        (lambda f: edit(f, lambda t: t.update({NORM: torch.ones(3)})), r"norm\.weight is \(3,\)"),
        (lambda f: edit(f, lambda t: t.update({NORM: t[NORM].double()})), "stored as F64"),
        (lambda f: edit(f, lambda t: t.update({TREE_NORM: t[NORM].clone()})), "are one tensor"),
    ],
)
def test_it_says_why_it_is_not_sure(llava, llava_adapter, tmp_path, damage, reason):
    base = shutil.copytree(llava, tmp_path / "base")
    damage(base)
    with pytest.raises(UnsureError, match=reason):
        DiskMerge(base, llava_adapter, "bf16")


def test_an_index_that_does_not_fit_its_files(llava, llava_adapter, tmp_path):
    base = shutil.copytree(llava, tmp_path / "base")
    index = json.loads((base / "model.safetensors.index.json").read_text())
    index["weight_map"].pop(NORM)
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsureError, match="does not name the tensors"):
        DiskMerge(base, llava_adapter, "bf16")


def test_tied_and_stored_twice(tmp_path):
    save_checkpoint(shrunken("llava", tie_word_embeddings=True), tmp_path)
    edit(tmp_path, lambda t: t.update({HEAD: t["language_model.model.embed_tokens.weight"].clone()}))
    with pytest.raises(UnsureError, match=r"lm_head\.weight is tied to .*embed_tokens\.weight and is stored"):
        DiskMerge(tmp_path, None, "fp32")


@pytest.mark.parametrize(
    ("name", "adapt", "reason"),
    [
        ("glm4v_moe", {"language": {"method": "full"}}, r"experts.* is computed from other tensors"),
        ("qianfan_ocr", {"vision": {"method": "lora", "rank": 2, "targets": ["q_proj"]}}, "q_proj.weight is computed"),
        ("llava", {"language": {"method": "lora", "rank": 2, "targets": ["embed_tokens"]}}, "an adapted embedding"),
    ],
)
def test_what_the_adapter_changes_must_be_in_the_files(tmp_path, name, adapt, reason):
    build(name).save_pretrained(tmp_path / "base")
    adapter = write_adapter(tmp_path / "base", adapt, tmp_path / "adapter")
    with pytest.raises(UnsureError, match=reason):
        DiskMerge(tmp_path / "base", adapter, "fp32")


def test_relics_that_transformers_ignores_are_copied(llava, llava_adapter, tmp_path):
    relic, numbers = "vision_tower.vision_model.embeddings.position_ids", torch.arange(5)[None]
    base = shutil.copytree(llava, tmp_path / "base")
    edit(base, lambda t: t.update({relic: numbers}))
    from_disk(base, llava_adapter, "fp32", tmp_path / "disk")
    assert torch.equal(tensors(tmp_path / "disk")[relic], numbers)


def test_another_base_is_refused(llava, llava_adapter, tmp_path):
    other = shutil.copytree(llava, tmp_path / "other")
    path = next(p for p in other.glob("*.safetensors") if "multi_modal_projector.linear_1.weight" in load_file(p))
    changed = {name: tensor.clone() for name, tensor in load_file(path).items()}
    changed["multi_modal_projector.linear_1.weight"][0, 0] += 0.5
    save_file(changed, path, {"format": "pt"})
    with pytest.raises(MmdoraError, match=r"trained on another base: its .*linear_1\.weight has other values"):
        DiskMerge(other, llava_adapter, "bf16")
    shrunken("llava", seed=1).save_pretrained(tmp_path / "third")
    with pytest.raises(MmdoraError, match="has other values"):
        DiskMerge(tmp_path / "third", llava_adapter, "bf16")
