"""The commands for own pictures, as README and docs/pictures.md have them, from a table to an exported model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from mmdora.cli import main

ROOT = Path(__file__).parents[1]
COLOURS = ("red", "green", "blue", "black", "white")
SHORT = ["--training.steps", "2", "--training.batch_size", "2", "--training.save_every", "2"]
"""What is added to the command that trains; all others are run as they are written."""


def commands(document: str) -> list[list[str]]:
    """The commands of the document's first block that prepares own pictures, as words."""
    blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    block = next(block for block in blocks if block.startswith("mmdora prep folder"))
    return [shlex.split(line) for line in block.splitlines()]


def test_both_documents_have_the_same_commands():
    assert commands("README.md") == commands("docs/pictures.md")


def test_the_section_of_the_readme_has_at_most_ten_lines():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Own pictures")[2].partition("\n## ")[0]
    assert len([line for line in section.splitlines() if line]) <= 10
    assert len(readme.encode()) < 7000


def test_from_a_table_to_an_exported_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    Path("photos").mkdir()
    lines = ["image,question,answer"]
    for number in range(10):
        colour = COLOURS[number % len(COLOURS)]
        Image.new("RGB", (32 + number, 32), colour).save(f"photos/{number}.png")
        lines += [f"{number}.png,{question},{colour}" for question in ("Which colour is it?", "What colour?")]
    Path("questions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for words in commands("README.md"):
        assert words[0] == "mmdora"
        assert main([*words[1:], *(SHORT if words[1] == "train" else [])]) == 0, words
    splits = {
        name: {json.loads(line)["images"][0] for line in Path(f"data/mine/{name}.jsonl").read_text().splitlines()}
        for name in ("train", "test")
    }
    assert len(splits["test"]) == 2 and len(splits["train"]) == 8
    assert Path("out/mine/model.safetensors").is_file()
    (metrics, *_) = Path("runs/eval").rglob("mine/metrics.json")
    assert json.loads(metrics.read_text())["n"] == 4
