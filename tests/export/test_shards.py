"""Files of tensors as bytes: widths, names, metadata, copies."""

from typing import Any

import torch
from merged_bases import from_disk
from safetensors.torch import load_file, save_file

from mmdora.export import shards


def test_widths_are_aligned_and_metadata_kept(tmp_path):
    found = {"a": torch.arange(3, dtype=torch.int64), "b": torch.randn(3), "c": torch.ones(3, dtype=torch.uint8)}
    save_file(found, tmp_path / "in.safetensors", {"format": "pt", "by": "someone"})
    shard = shards.read_shard(tmp_path / "in.safetensors")
    rewrites = {
        "a": shards.Rewrite("z", "I64"),
        "b": shards.Rewrite("y", "BF16", [found["b"][:1].bfloat16(), found["b"][1:].bfloat16()]),
        "c": shards.Rewrite('ünï "x"', "U8"),
    }
    count: list[int] = []
    out = tmp_path / "out.safetensors"
    shards.write_shard(shard, out, rewrites, count.append)
    assert sum(count) == out.stat().st_size
    written = shards.read_shard(out)
    assert written.metadata == {"format": "pt", "by": "someone"} and written.data % 8 == 0
    assert list(written.tensors) == ["z", "y", 'ünï "x"']
    read = load_file(out)
    assert torch.equal(read["z"], found["a"]) and torch.equal(read['ünï "x"'], found["c"])
    assert torch.equal(read["y"], found["b"].bfloat16())


def test_a_system_that_cannot_copy_from_file_to_file(llava, llava_adapter, tmp_path, monkeypatch):
    from_disk(llava, llava_adapter, "bf16", tmp_path / "fast")

    def refuse(*_: Any) -> int:
        raise OSError("not supported")

    monkeypatch.setattr("os.copy_file_range", refuse)
    monkeypatch.setattr(shards, "PIECE", 100)
    from_disk(llava, llava_adapter, "bf16", tmp_path / "slow")
    for path in (tmp_path / "fast").iterdir():
        assert path.read_bytes() == (tmp_path / "slow" / path.name).read_bytes()
