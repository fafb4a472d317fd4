"""Five families that differ most, down the whole path; `make families` takes all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from families.path import FAILED, Walk

DIFFERENT = {
    "qwen2_5_vl": "three-dimensional positions, windows of attention, as many tokens as a picture is large",
    "smolvlm": "tiles of which some are padding, tags of rows and columns between them",
    "llava_onevision": "tokens that depend on the number of pictures, a template that opens answers in two ways",
    "paligemma": "no template, a prefix that sees itself both ways",
    "mllama": "cross-attention in place of image tokens",
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_whole_path(name: str, tmp_path: Path) -> None:
    results = Walk(name, tmp_path / name, quick=True).walk()
    wrong = {title: said for title, said in results.items() if said.startswith(FAILED)}
    assert not wrong, wrong
