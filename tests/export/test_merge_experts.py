"""Experts merged from disk: fused in the files or apart, in both orientations, as the merge in memory writes them."""

from typing import Any

import pytest
import torch
from expert_cases import mixture
from merged_bases import build, from_disk, in_memory, same_checkpoint, tensors, write_adapter

from mmdora.export.merge_disk import DiskMerge
from mmdora.export.shards import UnsureError
from mmdora.export.tensor_parity import tensor_parity

pytestmark = pytest.mark.filterwarnings("ignore:.*PEFT has no DoRA")
CASES = [("glm4v_moe", 0), ("qwen3_vl_moe", 8), ("qwen3_vl_moe", 12), ("aria", 8), ("aria", 12)]
CASE = pytest.mark.parametrize(("name", "width"), CASES)


def base(name: str, width: int) -> Any:
    return mixture(name, width) if width else build(name)


@CASE
@pytest.mark.parametrize("method", ["dora", "lora"])
def test_as_in_memory(tmp_path, name, width, method):
    base(name, width).to(torch.bfloat16).save_pretrained(tmp_path / "base", max_shard_size="40KB")
    adapt = {"language": {"method": method, "rank": 2, "targets": ["experts", "q_proj"]}}
    adapter = write_adapter(tmp_path / "base", adapt, tmp_path / "adapter")
    merge = from_disk(tmp_path / "base", adapter, "bf16", tmp_path / "disk")
    same_checkpoint(in_memory(tmp_path / "base", adapter, "bf16", tmp_path / "memory"), tmp_path / "disk")
    old, new = tensors(tmp_path / "base"), tensors(tmp_path / "disk")
    of_experts = {file for file in old if ".experts." in file and "shared" not in file}
    assert len(of_experts) == (4 * 3 if name == "glm4v_moe" else 4)
    assert {file for file in old if not torch.equal(old[file], new[file])} == of_experts | set(merge.merged)
    parity = tensor_parity(merge, tmp_path / "disk")
    parity.check()
    assert parity.merged == len(merge.merged) == len(of_experts) + 2


def test_a_wrong_number_is_found(tmp_path):
    base("glm4v_moe", 0).save_pretrained(tmp_path / "base")
    adapt = {"language": {"method": "dora", "rank": 2, "targets": ["experts"]}}
    adapter = write_adapter(tmp_path / "base", adapt, tmp_path / "adapter")
    merge = from_disk(tmp_path / "base", adapter, "fp32", tmp_path / "disk")
    name = next(file for file in merge.merged if "experts.2.up_proj" in file)
    merge.adapter = {key: value.clone() for key, value in merge.adapter.items()}
    merge.adapter[f"{merge.merged[name].name}.lora_magnitude_vector"][2, -1] *= 1.01
    assert tensor_parity(merge, tmp_path / "disk").worst == name


def test_operations_that_are_not_known_are_merged_in_memory(tmp_path, monkeypatch):
    base("glm4v_moe", 0).save_pretrained(tmp_path / "base")
    adapt = {"language": {"method": "dora", "rank": 2, "targets": ["experts"]}}
    adapter = write_adapter(tmp_path / "base", adapt, tmp_path / "adapter")
    monkeypatch.setattr("mmdora.export.fused.MergeModulelist", type("Other", (), {}))
    with pytest.raises(UnsureError, match=r"experts\.gate_up_proj is made of other tensors of the files"):
        DiskMerge(tmp_path / "base", adapter, "fp32")
