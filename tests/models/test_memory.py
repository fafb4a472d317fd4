"""Memory is compared with what there is before weights are read: machine, container, GPU; mapped files count right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import DORA, moved_adapter
from tiny_run import first_turns

import mmdora
import mmdora.demo.columns as columns
import mmdora.evaluate.models as evaluation
import mmdora.models.base as bases
import mmdora.models.memory as memory
from mmdora.cli import main
from mmdora.errors import MmdoraError
from mmdora.models.base import skeleton
from mmdora.models.memory import check_memory, free_memory

GB = 10**9


def machine(root: Path, available: int, cgroup: str = "", **files: str) -> Path:
    """The files of a machine with this much memory available; `files` are those of its control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available // 1024} kB\nBuffers: 3 kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for path, text in files.items():
        (root / "sys/fs/cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / path).write_text(text)
    return root


def group(path: str, limit: str, used: int, *, old: bool = False) -> dict[str, str]:
    """The files of a group, of version 1 if `old`; a fifth of what is used is pages of files."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    total = "total_" if old else ""
    stat = f"anon 1\n{total}inactive_file {used // 10}\n{total}active_file {used // 10}\n"
    return {f"{path}/{names[0]}": limit, f"{path}/{names[1]}": str(used), f"{path}/memory.stat": stat}


@pytest.mark.parametrize(
    ("cgroup", "files", "left"),
    [
        ("", {}, 64),
        ("0::/\n", group(".", "max\n", 5 * GB), 64),
        ("0::/\n", group(".", f"{20 * GB}\n", 5 * GB), 16),
        ("0::/a/b\n", group("a", f"{20 * GB}", 10 * GB) | group("a/b", "max", 5 * GB), 12),
        ("0::/a/b\n", group("a", f"{90 * GB}", 10 * GB) | group("a/b", f"{6 * GB}", 5 * GB), 2),
        ("0::/seen/outside/only\n", group(".", f"{20 * GB}", 5 * GB), 16),
        ("0::/../elsewhere\n", group(".", f"{20 * GB}", 5 * GB), 16),
        ("0::/\n", group(".", f"{4 * GB}", 10 * GB), 0),
        ("4:memory:/\n0::/\n", group("memory", "9223372036854771712", 5 * GB, old=True), 64),
        ("5:cpu:/x\n4:cpu,memory:/x\n", group("memory/x", f"{20 * GB}", 5 * GB, old=True), 16),
        ("4:memory:/docker/1f\n", group("memory", f"{20 * GB}", 5 * GB, old=True), 16),
    ],
)
def test_what_is_free(tmp_path, cgroup, files, left):
    root = machine(tmp_path, 64 * GB // 1024 * 1024, cgroup, **files)
    assert free_memory(root=root) == pytest.approx(left * GB, abs=1024)


def test_a_machine_without_these_files(tmp_path):
    assert free_memory(root=tmp_path / "nowhere") > 0


@pytest.fixture
def free(monkeypatch) -> dict[str, int]:
    """What is free by device: in main memory, and on a GPU that is not there."""
    found = {"cpu": 64 * GB, "cuda": 64 * GB}
    monkeypatch.setattr(memory, "_available", lambda root: found["cpu"])
    monkeypatch.setattr(memory, "_left_in_groups", lambda root: ())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (found["cuda"], 80 * GB))
    return found


def test_mapped_weights_are_not_counted(tiny_llava, free):
    model = skeleton(tiny_llava)
    size = 2 * sum(parameter.numel() for parameter in model.parameters())
    free["cpu"] = 0
    check_memory("tiny", model, "fp32")
    with pytest.raises(MmdoraError, match=r"as bf16 need \d.*MB of main memory, and 0\.0 kB is free; take fp32"):
        check_memory("tiny", model, "bf16")
    free["cpu"] = size
    check_memory("tiny", model, "bf16")
    with pytest.raises(MmdoraError, match=r"in 2 processes"):
        check_memory("tiny", model, "bf16", processes=2)
    with pytest.raises(MmdoraError, match=r"as fp32 and its optimizer need"):
        check_memory("tiny", model, "fp32", beside=size + 1, what="its optimizer")


def test_a_gpu_holds_weights_of_any_dtype(tiny_llava, free):
    model = skeleton(tiny_llava)
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    free |= {"cuda": size, "cpu": 0}
    check_memory("tiny", model, "fp32", "cuda:1")
    with pytest.raises(MmdoraError, match=r"memory on cuda:1, and .* free; free some, or take another device"):
        check_memory("tiny", model, "fp32", "cuda:1", beside=1)


@pytest.fixture(scope="module")
def half(tiny_llava, tmp_path_factory) -> Path:
    """The bundled base in bf16."""
    folder = tmp_path_factory.mktemp("half")
    for part in mmdora.load(tiny_llava, dtype="bf16"):
        part.save_pretrained(folder)
    return folder


COMMANDS = {
    "train": ["{config}"],
    "eval": ["{half}", "--data", "{records}", "--dtype", "fp32", "--out", "{tmp}/eval"],
    "demo": ["a={half}", "--dtype", "fp32"],
    "export": ["{adapter}", "{tmp}/out", "--parity", "logits"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_so_before_it_reads_weights(half, scene_records, tmp_path, monkeypatch, capsys, free, command):
    adapter = tmp_path / "adapter"
    if command == "export":
        moved_adapter(str(half), DORA, adapter)
    config = {
        "model": {"base": str(half), "dtype": "fp32"},
        "adapt": {"language": {"method": "lora", "rank": 2}},
        "data": {"train": str(first_turns(scene_records, 10))},
        "training": {"output": str(tmp_path / "run"), "steps": 2},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    places = {"half": half, "records": scene_records, "tmp": tmp_path, "adapter": adapter}
    words = [word.format(config=tmp_path / "config.yaml", **places) for word in COMMANDS[command]]
    read: list[Any] = []
    monkeypatch.setattr(bases.AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: read.append(1))
    free["cpu"] = 10**6
    assert main([command, *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "weights as fp32" in said and "1.0 MB is free; " in said and "take bf16, the dtype of its files" in said
    assert ("--parity tensors" in said) == (command == "export")
    assert not read


def test_the_default_dtype_is_the_checkpoints_own(half, scene_records, tmp_path, monkeypatch):
    model, _ = mmdora.load(half, dtype=None)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    asked: list[Any] = []

    def stop(*_: Any, dtype: Any, **__: Any) -> Any:
        asked.append(dtype)
        raise MmdoraError("enough")

    monkeypatch.setattr(evaluation, "load", stop)
    monkeypatch.setattr(columns, "load", stop)
    assert main(["eval", str(half), "--data", str(scene_records), "--out", str(tmp_path / "eval")]) == 2
    assert main(["demo", f"a={half}"]) == 2
    assert asked == [None, None]
