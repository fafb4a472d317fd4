"""The code of a card runs in stock transformers and asks what mmdora asks, also where a processor has no template."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from families import checkpoints
from PIL import Image

from mmdora.export.snippet import QUESTION, snippet
from mmdora.families import ask, family_of
from mmdora.models.load import load_processor

WAYS = {
    "internvl": "inputs = processor.apply_chat_template(",
    "chameleon": "text = processor.tokenizer.apply_chat_template(",
    "paligemma": f"text = '<image>{QUESTION}'",
    "got_ocr2": "<img><imgpad></img>",
    "git": f"text = '[CLS]{QUESTION}'",
}
"""A family whose processor reads conversations, one that leaves them to the tokenizer, and ones that read a text."""


@pytest.mark.parametrize("name", sorted(WAYS.keys() - checkpoints.TOO_OLD))
def test_it_asks_what_mmdora_asks(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints.make(name, tmp_path / "base")
    family = family_of(load_processor(str(tmp_path / "base")))
    code = snippet("base", tmp_path / "base", family)
    if name in ("chameleon",):  # The export has the template that its family brings along.
        family.processor.tokenizer.chat_template = family.processor.chat_template
        family.processor.tokenizer.save_pretrained(tmp_path / "base")
        code = snippet("base", tmp_path / "base", family)
    assert WAYS[name] in code
    Image.new("RGB", (64, 48), "green").save(tmp_path / "photo.jpg")
    made: dict[str, Any] = {}
    with contextlib.chdir(tmp_path):
        exec(code.replace("max_new_tokens=64", "max_new_tokens=2"), made)
    picture = Image.open(tmp_path / "photo.jpg").convert("RGB")
    asked = family.encode_prompts([ask(QUESTION, picture)])
    assert made["inputs"]["input_ids"].tolist() == asked["input_ids"].tolist()
    assert capsys.readouterr().out.strip()
