"""The paper's columns: their order, their numbers, their average, and what stays blank."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from mmdora.errors import MmdoraError
from mmdora.evaluate import command, run
from mmdora.evaluate.scoring.scores import Score, Scores
from mmdora.evaluate.suites import SUITES, Cell, Column, average, entered_scores, suite_of, suite_table
from mmdora.evaluate.tasks import TASKS
from mmdora.prepare.record import asked
from mmdora.records.reader import write_records
from mmdora.records.record import Record

# DoRA, arXiv 2402.09353: rows of tables 1, 2, 3 and 5 with the averages printed there
PUBLISHED = [
    ("paper-commonsense", (68.9, 80.7, 77.4, 78.1, 78.8, 77.8, 61.3, 74.8), 74.7),
    ("paper-commonsense", (70.0, 82.6, 79.7, 83.2, 80.6, 80.6, 65.4, 77.6), 77.5),
    ("paper-commonsense", (69.7, 83.4, 78.6, 87.2, 81.0, 81.9, 66.2, 79.2), 78.4),
    ("paper-llava", (78.5, 61.9, 50.0, 66.8, 58.2, 85.9, 64.3), 66.5),
    ("paper-llava", (79.1, 62.9, 47.8, 68.4, 58.2, 86.4, 66.1), 66.9),
    ("paper-llava", (78.6, 62.9, 52.2, 69.9, 57.0, 87.2, 66.1), 67.6),
    ("paper-vlbart-image", (66.9, 56.7, 73.7, 112.0), 77.3),
    ("paper-vlbart-image", (65.2, 53.6, 71.9, 115.3), 76.5),
    ("paper-vlbart-image", (65.8, 54.7, 73.1, 115.9), 77.4),
    ("paper-vlbart-video", (76.3, 73.9, 45.7, 154.0), 87.5),
    ("paper-vlbart-video", (75.5, 72.9, 44.6, 140.9), 83.5),
    ("paper-vlbart-video", (76.3, 74.1, 45.8, 145.4), 85.4),
]


@pytest.mark.parametrize(("suite", "numbers", "published"), PUBLISHED)
def test_averages_as_the_paper_does(suite, numbers, published):
    assert len(SUITES[suite].columns) == len(numbers)
    found = average([Cell(number, "local") for number in numbers])
    assert found == pytest.approx(published, abs=0.101)  # the columns are rounded too


def test_a_blank_column_leaves_the_average_blank():
    assert average([Cell(1.0, "local"), Cell(None, "server")]) is None
    assert average([Cell(1.0, "local"), None]) is None


def test_columns_are_tasks_and_pick_the_number_that_the_paper_prints():
    assert all(column.task in TASKS for suite in SUITES.values() for column in suite.columns)
    scores = Scores(Score(0.5, 4), {"image": Score(0.25, 2)}, {"F1": Score(0.75, 2)})
    assert SUITES["paper-llava"].column("scienceqa").number(scores).value == 0.25
    assert Column("x", "pope", "F1").number(scores).value == 0.75
    with pytest.raises(MmdoraError, match="column SQA: none"):
        Column("SQA", "scienceqa", "picture").number(scores)
    with pytest.raises(MmdoraError, match="no suite 'paper'; there are paper-llava"):
        suite_of("paper")


def test_entered_scores():
    suite = SUITES["paper-llava"]
    assert entered_scores(suite, ["a"], ["vqav2=78.6", "vizwiz=50"]) == {"a": {"vqav2": 78.6, "vizwiz": 50.0}}
    assert entered_scores(suite, ["a", "b"], ["b:vqav2=78.6"]) == {"a": {}, "b": {"vqav2": 78.6}}
    assert entered_scores(SUITES["paper-vlbart-image"], ["a"], ["coco-captions=115.9"])["a"]["coco-captions"] == 115.9
    for text, said in (
        ("vqav2=78.6", "which model"),
        ("c:vqav2=1", "which model"),
        ("a:vqav=1", "did you mean 'vqav2'"),
        ("a:vqav2=high", "no score"),
        ("a:vqav2=-3", "no score"),
        ("a:vqav2=nan", "no score"),
    ):
        with pytest.raises(MmdoraError, match=said):
            entered_scores(suite, ["a", "b"], [text])


def test_the_table_says_where_a_column_is_scored():
    console = Console(width=160, record=True, file=io.StringIO())
    cells = {
        "LoRA": {"vqav2": Cell(None, "server", "test-dev"), "gqa": Cell(61.24, "local", "testdev")},
        "DoRA": {"vqav2": Cell(78.6, "entered", "test-dev"), "gqa": Cell(62.0, "local", "testdev")},
    }
    console.print(suite_table(SUITES["paper-llava"], cells))
    shown = console.export_text()
    for text in ("entered/server test-dev", "local testdev", "61.2", "78.6", "no data", "Avg."):
        assert text in shown
    positions = [shown.index(column.heading) for column in SUITES["paper-llava"].columns]
    assert positions == sorted(positions)


# --- end to end, with answers instead of a model


def prepared(data: Path, task: str, split: str, records: Sequence[Record]) -> None:
    write_records(data / task / f"{split}.jsonl", records)
    entry = {"file": f"{split}.jsonl", "images_root": None, "packed": False}
    (data / task / "dataset_card.json").write_text(json.dumps({"name": task, "splits": {split: entry}}))


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """Data of four columns, two of them without answers; the model always says "yes"."""
    root = tmp_path / "data"
    prepared(root, "vqav2", "test-dev", [asked(i, [], "Is it?", None, question_id=i) for i in range(3)])
    prepared(root, "vizwiz", "test", [asked(f"{i}.jpg", [], "Is it?", None, image=f"{i}.jpg") for i in range(3)])
    prepared(root, "gqa", "testdev", [asked(i, [], "Is it?", ["yes", "no"][i % 2], question_id=i) for i in range(4)])
    records = [
        asked(f"{split}-{i}", [], "Is it?", ["yes", "no"][i % 2], question_id=i, question="Is it?", type=split)
        for split in ("random", "popular", "adversarial")
        for i in range(4)
    ]
    for split in ("random", "popular", "adversarial"):
        write_records(root / "pope" / f"{split}.jsonl", [r for r in records if r["meta"]["type"] == split])
    entries = {
        s: {"file": f"{s}.jsonl", "images_root": None, "packed": False} for s in ("random", "popular", "adversarial")
    }
    (root / "pope" / "dataset_card.json").write_text(json.dumps({"name": "pope", "splits": entries}))
    monkeypatch.setattr(run, "generate", lambda model, processor, prompts, **_: ["yes"] * len(prompts))
    return root


def test_a_suite_names_what_is_missing_and_takes_entered_scores(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "170")
    settings = command.EvaluationSettings(tmp_path / "out")
    cells = command.run_suite({"m": "tiny-llava"}, "paper-llava", data, settings)
    captured = capsys.readouterr()
    assert "no data for scienceqa, textvqa, mmbench below" in captured.err
    assert cells["m"]["gqa"] == Cell(50.0, "local", "testdev")
    assert cells["m"]["pope"].value == pytest.approx(200 / 3), "every answer is yes: P 1/2, R 1"
    assert cells["m"]["vqav2"] == Cell(None, "server", "test-dev")
    assert "hand in" in captured.out and "--scores vizwiz=NUMBER" in captured.out
    written = json.loads((tmp_path / "out" / "vqav2" / "m" / "results.json").read_text())
    assert written == [{"question_id": i, "answer": "yes"} for i in range(3)]
    metrics = json.loads((tmp_path / "out" / "vqav2" / "m" / "metrics.json").read_text())
    assert metrics["server"] is True and "overall" not in metrics
    assert json.loads((tmp_path / "out" / "paper-llava.json").read_text())["models"]["m"]["average"] is None

    given = ["vqav2=78.6", "vizwiz=50", "scienceqa=60", "textvqa=40", "mmbench=66"]
    monkeypatch.setattr(run, "generate", lambda *_, **__: pytest.fail("asked again"))
    command.run_suite({"m": "tiny-llava"}, "paper-llava", data, settings, given)
    model = json.loads((tmp_path / "out" / "paper-llava.json").read_text())["models"]["m"]
    assert model["average"] == pytest.approx((78.6 + 50 + 50 + 60 + 40 + 200 / 3 + 66) / 7)
    assert model["columns"]["vqav2"] == {"value": 78.6, "scored": "entered", "split": "test-dev"}


def test_a_suite_without_any_data(tmp_path):
    settings = command.EvaluationSettings(tmp_path / "out")
    with pytest.raises(MmdoraError, match="no folder for any column of paper-llava"):
        command.run_suite({"m": "tiny-llava"}, "paper-llava", tmp_path, settings)
    with pytest.raises(MmdoraError, match="no folder; a suite reads"):
        command.run_suite({"m": "tiny-llava"}, "paper-llava", tmp_path / "none", settings)
