"""Merged from disk is merged in memory, bit for bit, in memory that does not grow with the model."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from merged_bases import (
    ALL,
    LANGUAGE,
    build,
    from_disk,
    in_memory,
    same_checkpoint,
    tensors,
    write_adapter,
)
from peak_memory import NEEDS_PROC, peak_of
from shrunken import TEXT, shrunken

import mmdora
import mmdora.ops.merge
from mmdora.export import shards
from mmdora.export.layout import save_checkpoint
from mmdora.export.tensor_parity import tensor_parity
from mmdora.models.dtypes import DTYPES
from mmdora.ops.reference import adapted_weight


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp16"])
def test_a_sharded_llava_in_the_hubs_layout(llava, llava_adapter, tmp_path, dtype):
    merge = from_disk(llava, llava_adapter, dtype, tmp_path / "disk")
    same_checkpoint(in_memory(llava, llava_adapter, dtype, tmp_path / "memory"), tmp_path / "disk")
    before, after = tensors(llava), tensors(tmp_path / "disk")
    changed = {name for name in before if not torch.equal(before[name].to(DTYPES[dtype]), after[name])}
    assert changed == {name for name, row in merge.rows.items() if row.change is not None}
    assert len(merge.merged) == 14 + 12
    if dtype == "bf16":  # files without a change are copies, and the others keep their headers
        untouched = [s for s in shards.read_shards(llava) if not changed & s.tensors.keys()]
        assert untouched and len(untouched) < len(merge.base.shards)
        assert all(s.path.read_bytes() == (tmp_path / "disk" / s.path.name).read_bytes() for s in untouched)
        for shard in merge.base.shards:
            head = (tmp_path / "disk" / shard.path.name).read_bytes()[: shard.data]
            assert head == shard.path.read_bytes()[: shard.data]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_tiny_llava_gives_the_very_file(tiny_llava, tmp_path, dtype):
    adapter = write_adapter(Path(tiny_llava), ALL, tmp_path / "adapter")
    from_disk(Path(tiny_llava), adapter, dtype, tmp_path / "disk")
    in_memory(Path(tiny_llava), adapter, dtype, tmp_path / "memory")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "disk" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "changes", "adapt"),
    [
        ("llava", {"tie_word_embeddings": True}, ALL),
        ("llava_next", {}, LANGUAGE),
        ("qwen2_5_vl", {}, ALL),
        ("qwen2_5_vl", {"tie_word_embeddings": True}, {"language": {"method": "full"}}),
        ("qwen3_vl", {}, ALL),
        ("gemma3", {}, {"vision": {"method": "full"}, "language": {"method": "magnitude"}}),
        ("idefics3", {}, ALL),
        ("internvl", {}, LANGUAGE),
        ("mllama", {}, LANGUAGE),
        ("glm4v_moe", {}, {"language": {"method": "dora", "rank": 2, "targets": ["attention"]}}),
        ("qianfan_ocr", {}, ALL | {"vision": {"method": "none"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "tied" if value == {"tie_word_embeddings": True} else "",
)
def test_other_architectures(tmp_path, name, changes, adapt):
    """Bases as transformers saves them: in the layout of their hub, with fused experts taken apart."""
    model = build(name, **changes)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base", max_shard_size="40KB")
    adapter = write_adapter(tmp_path / "base", adapt, tmp_path / "adapter")
    merge = from_disk(tmp_path / "base", adapter, "bf16", tmp_path / "disk")
    same_checkpoint(in_memory(tmp_path / "base", adapter, "bf16", tmp_path / "memory"), tmp_path / "disk")
    assert any(row.change is not None for row in merge.rows.values())
    if changes:
        assert "lm_head.weight" in merge.base.model.all_tied_weights_keys


def test_a_base_in_the_layout_of_the_tree_is_renamed(tmp_path):
    """transformers would write what it loaded; engines do not know these names."""
    shrunken("llava").save_pretrained(tmp_path / "base", save_original_format=False, max_shard_size="60KB")
    adapter = write_adapter(tmp_path / "base", ALL, tmp_path / "adapter")
    from_disk(tmp_path / "base", adapter, "fp32", tmp_path / "disk")
    same_checkpoint(in_memory(tmp_path / "base", adapter, "fp32", tmp_path / "memory"), tmp_path / "disk")
    assert "language_model.model.layers.0.mlp.up_proj.weight" in tensors(tmp_path / "disk")
    assert "model.language_model.layers.0.mlp.up_proj.weight" in tensors(tmp_path / "base")


def test_a_convolution(llava, tmp_path):
    targets = ["patch_embedding", "fc1"]
    adapter = write_adapter(llava, {"vision": {"method": "dora", "rank": 2, "targets": targets}}, tmp_path / "adapter")
    merge = from_disk(llava, adapter, "bf16", tmp_path / "disk")
    assert any(entry.kind == "conv" for entry in merge.merged.values())
    same_checkpoint(in_memory(llava, adapter, "bf16", tmp_path / "memory"), tmp_path / "disk")
    tensor_parity(merge, tmp_path / "disk").check()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_of_peft_is_merged_as_peft_merges_it(tmp_path, dora):
    model = shrunken("llava")
    save_checkpoint(model, tmp_path / "base")
    names = r".*language_model.*(q_proj|down_proj)"
    config = peft.LoraConfig(r=3, lora_alpha=7, use_dora=dora, target_modules=names, init_lora_weights=False)
    adapted: Any = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.2)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match="no fingerprint"):
        merge = from_disk(tmp_path / "base", tmp_path / "adapter", "fp32", tmp_path / "disk")
    assert len(merge.merged) == 4
    save_checkpoint(adapted.merge_and_unload(), tmp_path / "peft")
    mine, theirs = tensors(tmp_path / "disk"), tensors(tmp_path / "peft")
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert (mine[name] - theirs[name]).abs().max() <= 1e-6 * theirs[name].abs().max(), name
        assert name in merge.merged or torch.equal(mine[name], theirs[name])


def test_a_few_rows_at_a_time(llava, llava_adapter, tmp_path, monkeypatch):
    from_disk(llava, llava_adapter, "bf16", tmp_path / "whole")
    monkeypatch.setattr(mmdora.ops.merge, "PIECE_ELEMENTS", 200)
    monkeypatch.setattr(mmdora.ops.merge, "PIECE_ROWS", 8)
    assert list(mmdora.ops.merge.pieces(28, 24)) == [(0, 8), (8, 16), (16, 28)]
    assert list(mmdora.ops.merge.pieces(5, 24)) == [(0, 5)]
    from_disk(llava, llava_adapter, "bf16", tmp_path / "pieces")
    same_checkpoint(tmp_path / "whole", tmp_path / "pieces")


def test_large_products_in_pieces_have_the_same_bits():
    """Odd sizes and remainders included; the pieces are those of a real merge."""
    torch.manual_seed(0)
    for rows, columns, rank in ((1537, 4096, 64), (1000, 11008, 16), (777, 9999, 17), (2049, 5120, 8)):
        weight, magnitude = 0.02 * torch.randn(rows, columns), 0.5 + torch.rand(rows)
        a, b = 0.01 * torch.randn(rank, columns), 0.01 * torch.randn(rows, rank)
        parts = list(mmdora.ops.merge.merged_rows(weight.bfloat16(), a, b, magnitude, 2.0))
        whole = adapted_weight(weight.bfloat16().float(), a, b, magnitude, 2.0)
        assert len(parts) > 1 and torch.equal(torch.cat(parts), whole)


MERGE = """
merge = DiskMerge(Path(sys.argv[1]), Path(sys.argv[2]), "bf16")
merge.write(Path(sys.argv[3]))
tensor_parity(merge, Path(sys.argv[3])).check()
"""
MERGE_ONCE = """
from pathlib import Path
from mmdora.export.merge_disk import DiskMerge
from mmdora.export.tensor_parity import tensor_parity
DiskMerge(Path(sys.argv[4]), None, "bf16")
"""


@NEEDS_PROC
def test_memory_does_not_grow_with_the_model(llava, tmp_path):
    text = {**TEXT, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2, "head_dim": 512}
    model = shrunken("llava", text_config=text).to(torch.bfloat16)
    save_checkpoint(model, tmp_path / "base")
    adapt = {"language": {"method": "dora", "rank": 64, "targets": ["attention", "mlp"]}}
    mmdora.inject(model, adapt)
    mmdora.save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    (tmp_path / "out").mkdir()
    folders = [*(tmp_path / name for name in ("base", "adapter", "out")), llava]
    model_bytes, peak = peak_of(MERGE_ONCE, MERGE, "4 * merge.elements", *folders)
    assert model_bytes > 115e6
    assert peak < 100e6, f"{peak / 1e6:.0f} MB"
