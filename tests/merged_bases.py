"""Writes shrunken bases and adapters on them as files, and merges them in both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from shrunken import ROPE, TEXT, shrunken
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import mmdora
from mmdora.adapt.inject import trainable_parameters
from mmdora.export.layout import save_checkpoint
from mmdora.export.merge_disk import DiskMerge
from mmdora.export.merge_memory import MergedModel

MOE = {
    "vision_config": {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "image_size": 16},
    "text_config": {**TEXT, **ROPE, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
}
MOE["vision_config"] |= {"out_hidden_size": 24, "intermediate_size": 32}
MOE["text_config"] |= {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
QIANFAN = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
QIANFAN |= {"image_size": [8, 8], "patch_size": [4, 4]}

LANGUAGE = {"language": {"method": "dora", "rank": 4, "targets": ["attention", "mlp"]}}
ALL = {
    "vision": {"method": "lora", "rank": 2},
    "projector": {"method": "full"},
    "language": {"method": "dora", "rank": 4, "alpha": 12, "rslora": True, "targets": ["attention", "mlp"]},
}

HEAD, NORM = "language_model.lm_head.weight", "language_model.model.norm.weight"
ZEROS = "vision_tower.vision_model.post_layernorm.bias"
TREE_NORM = "model.language_model.norm.weight"


def build(name: str, **changes: Any) -> Any:
    if name in ("glm4v_moe", "qianfan_ocr"):
        torch.manual_seed(0)
        sizes = MOE if name == "glm4v_moe" else {"vision_config": QIANFAN, "text_config": TEXT}
        return AutoModelForImageTextToText.from_config(CONFIG_MAPPING[name](**sizes)).eval()
    return shrunken(name, **changes)


def llava_in_files(folder: Path) -> Path:
    """Write a LLaVA as several files in the hub's legacy layout, in bf16."""
    save_checkpoint(shrunken("llava").to(torch.bfloat16), folder, shard="6KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def write_adapter(base: Path, adapt: dict[str, Any], folder: Path) -> Path:
    """Write an adapter in which every parameter was changed, magnitudes by about a third."""
    model: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    mmdora.inject(model, adapt)
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter, _, kind in trainable_parameters(model):
            noise = torch.randn_like(parameter)
            parameter.mul_(1 + 0.3 * noise) if kind == "magnitude" else parameter.add_(0.02 * noise)
    mmdora.save_adapter(model, folder, base=str(base))
    return folder


def in_memory(base: Path, adapter: Path | None, dtype: str, folder: Path) -> Path:
    """Merge in memory and write the result, like `export`."""
    model: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    if adapter:
        mmdora.load_adapter(model, adapter)
    folder.mkdir()
    MergedModel(model, base, dtype).write(folder)  # type: ignore[arg-type]
    return folder


def from_disk(base: Path, adapter: Path | None, dtype: str, folder: Path) -> DiskMerge:
    folder.mkdir()
    merge = DiskMerge(base, adapter, dtype)
    merge.write(folder)
    return merge


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def same_checkpoint(a: Path, b: Path) -> None:
    mine, other = tensors(a), tensors(b)
    assert mine.keys() == other.keys()
    assert all(mine[name].dtype == other[name].dtype and torch.equal(mine[name], other[name]) for name in mine)
    assert (a / "config.json").read_bytes() == (b / "config.json").read_bytes()
    for folder in (a, b):
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            read = json.loads(index.read_text())
            assert read["weight_map"].keys() == tensors(folder).keys()
            assert all((folder / name).is_file() for name in read["weight_map"].values())
            assert read["metadata"]["total_size"] == sum(t.nbytes for t in tensors(folder).values())
    opened: Any = AutoModelForImageTextToText.from_pretrained(a, output_loading_info=True)
    assert not any(opened[1][kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def edit(folder: Path, change: Any) -> None:
    found = {name: tensor.clone() for name, tensor in tensors(folder).items()}
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.unlink(missing_ok=True)
    change(found)
    save_file(found, folder / "model.safetensors", {"format": "pt"})
