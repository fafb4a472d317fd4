"""Handwritten digits as questions: true to scikit-learn's scans, split by a hash of the pixels."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mmdora.data_prep import digits
from mmdora.errors import MmdoraError
from mmdora.prepare.held_out import held_out


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    assert sum(digits.prepare(folder).values()) == 1446 + 3 * 351
    return folder


def test_every_scan_is_asked_about_truly(out: Path, records_of, question_of, full_marks):
    targets = np.asarray(load_digits(return_X_y=True)[1])
    train, test = records_of(out / "train.jsonl"), records_of(out / "test.jsonl")
    assert {Path(r["images"][0]).stem for r in train + test} == {str(number) for number in range(1797)}
    assert not {r["images"][0] for r in train} & {r["images"][0] for r in test}
    counts = Counter()
    for record in test:
        digit = int(targets[int(Path(record["images"][0]).stem)])
        question, answer = question_of(record), record["messages"][1]["content"][0]["text"]
        named = question.removeprefix("is this the digit ").removesuffix("?")
        truth = {
            "which digit is this?": str(digit),
            "is this digit even?": "yes" if digit % 2 == 0 else "no",
        }.get(question) or ("yes" if digits.NUMBERS[digit] == named else "no")
        assert answer == truth, record
        counts[question.split()[0], answer] += 1
    assert 0.4 < counts["is", "yes"] / 702 < 0.6
    assert len(train[0]["messages"]) == 6
    rows = [r | {"answer": r["messages"][1]["content"][0]["text"]} for r in test]
    assert {r["meta"]["type"] for r in rows} == {"yes/no", "other"}
    assert full_marks("exact", test)


def test_pictures_are_the_scans(out: Path):
    scans, _ = load_digits(return_X_y=True)
    for number in (0, 5, 1796):
        path = next(out.glob(f"images/*/{number}.png"))
        small = np.asarray(Image.open(path).resize((8, 8), Image.Resampling.BOX), dtype=float)
        assert np.abs((255 - small) * 16 / 255 - scans[number].reshape(8, 8)).mean() < 1.0
        assert (path.parent.name == "test") == held_out(scans[number].astype(np.uint8).tobytes())


def test_without_scikit_learn_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MmdoraError, match=r"pip install 'mmdora\[eval\]'"):
        digits.prepare(tmp_path / "out")


def test_the_card_names_the_task(out: Path):
    card = json.loads((out / "dataset_card.json").read_text())
    assert card["name"] == "digits" and card["splits"]["test"]["records"] == 1053
