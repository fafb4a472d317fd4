import json
from itertools import islice
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmdora.data.records import read_records
from mmdora.data_prep import easy_vqa
from mmdora.errors import MmdoraError
from mmdora.evaluate import run
from mmdora.evaluate.metrics import Scores


@pytest.fixture(scope="module")
def loaded(tiny_llava):
    """The base with random weights large enough that its answers differ from question to question."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_llava).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model, AutoProcessor.from_pretrained(tiny_llava)


@pytest.fixture(scope="module")
def easy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("easy")
    easy_vqa.prepare(folder)
    return folder


@pytest.fixture
def records(easy):
    return list(islice(read_records(easy / "test.jsonl"), 30))


def test_batches_change_nothing_and_rows_keep_their_order(
    loaded: tuple[Any, Any], easy, records, tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "AHEAD", 2)
    batched = run.evaluate(*loaded, records, easy, batch_size=7, max_new_tokens=4, out=tmp_path / "a")
    alone = run.evaluate(*loaded, records, easy, batch_size=1, max_new_tokens=4, out=tmp_path / "b")
    rows = run.read_predictions(tmp_path / "a")
    assert rows == run.read_predictions(tmp_path / "b") and batched == alone
    assert [row["id"] for row in rows] == [record["id"] for record in records]
    assert len({row["prediction"] for row in rows}) > 1


def test_files_hold_what_was_scored(loaded: tuple[Any, Any], easy, records, tmp_path, monkeypatch):
    answers = ["Yes." if i % 2 else "teal" for i in range(len(records))]
    monkeypatch.setattr(run, "generate", lambda model, processor, prompts, **_: answers)
    scores = run.evaluate(*loaded, records, easy, out=tmp_path / "new" / "out")
    rows = run.read_predictions(tmp_path / "new" / "out")
    assert set(rows[0]) == {"id", "question", "answer", "prediction", "correct", "type"}
    for row, answer in zip(rows, answers, strict=True):
        assert row["prediction"] == answer
        assert row["correct"] == (row["answer"] == answer.lower().rstrip("."))
        assert row["type"] == ("yes/no" if row["answer"] in ("yes", "no") else "other")
    metrics = json.loads((tmp_path / "new" / "out" / "metrics.json").read_text())
    assert Scores.from_dict(metrics) == scores
    right = sum(row["correct"] for row in rows)
    assert metrics["overall"]["score"] == right / len(rows) > 0
    assert metrics["questions_per_s"] > 0


def test_each_image_is_opened_once(loaded: tuple[Any, Any], easy, records, monkeypatch):
    opened, real = [], run.open_image
    monkeypatch.setattr(run, "open_image", lambda name, root: opened.append(name) or real(name, root))
    monkeypatch.setattr(run, "generate", lambda model, processor, prompts, **_: [""] * len(prompts))
    run.evaluate(*loaded, records, easy)
    assert len(opened) == len({name for record in records for name in record["images"]}) < len(records)


def test_a_missing_image_is_named_with_its_record(loaded: tuple[Any, Any], easy, records):
    broken = [*records[:3], records[3] | {"id": "row-x", "images": ["images/none.png"]}]
    with pytest.raises(MmdoraError, match=r"record row-x: .*none\.png"):
        run.evaluate(*loaded, broken, easy)


def test_no_records(loaded: tuple[Any, Any], easy):
    with pytest.raises(MmdoraError, match="nothing to evaluate"):
        run.evaluate(*loaded, [], easy)


def test_progress_shows_the_time_left(loaded: tuple[Any, Any], easy, records, capsys):
    run.evaluate(*loaded, records[:4], easy, batch_size=2, max_new_tokens=2, progress=True)
    shown = capsys.readouterr().err
    assert "4/4" in shown and "q/s" in shown
