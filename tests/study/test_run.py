"""A study end to end on the bundled base: cells, locks, what is reused, a cell run again, advice on own records."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from study_designs import written

from mmdora.cli import main
from mmdora.data_prep import scenes
from mmdora.study import run as running
from mmdora.study.cells import Cell, wanted
from mmdora.study.data import SPLITS, splits_of
from mmdora.study.design import read_study
from mmdora.study.results import RESULTS, Results, packed, read_results
from mmdora.study.run import Runner
from mmdora.study.tasks import TASKS, StudyTask


def few(out: Path) -> dict[str, int]:
    return scenes.prepare(out, kind="count", rows=10, held_out=12, workers=1)


FEW = StudyTask("few", "a few drawn scenes", "scenes-count", "few", few, rows=12, steps=2, batch_size=4, pictures=4)


@pytest.fixture(scope="module", autouse=True)
def _few_rows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "few", FEW)  # pyright: ignore
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a design and, in `out`, its two cells."""
    folder = tmp_path_factory.mktemp("study")
    design = written(folder, tasks=["few"], rates={"low": 1e-3, "high": 1e-3, "count": 1}, seeds=[0])
    assert main(["study", str(design), "--out", str(folder / "out")]) == 0
    return folder


def lines(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "out" / RESULTS).read_text(encoding="utf-8").splitlines()]


def test_every_cell_is_an_ordinary_run_with_its_config(place: Path) -> None:
    task, *cells = lines(place)
    assert task["kind"] == "task" and sum(task["questions_per_picture"]) > 4
    assert {line["adapt"]["language"]["method"] for line in cells} == {"lora", "dora"}
    for line in cells:
        run = place / "out/runs" / line["key"]
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        assert config["adapt"]["vision"]["method"] == line["adapt"]["vision"]["method"]
        assert config["training"]["lr"] == line["training"]["lr"] == 1e-3
        assert 0 <= line["test"] <= 1 and line["trainable"] > 1000 and line["device"]
        assert 0 < line["retained"] <= task["retained"] + 0.2 and line["train_peak_bytes"] > 2**26


def test_no_picture_is_in_two_splits(place: Path) -> None:
    splits = splits_of(FEW, place / "out")
    shown = [
        {image for line in splits.file(split).read_text().splitlines() for image in json.loads(line)["images"]}
        for split in SPLITS
    ]
    assert all(shown) and not shown[0] & shown[1] and not shown[1] & shown[2] and not shown[0] & shown[2]
    assert len(splits.questions_per_picture) == len(shown[2]) <= FEW.pictures


def test_what_is_there_is_not_run_again(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def never(*given: Any) -> None:
        raise AssertionError(given)

    monkeypatch.setattr(running, "run_cell", never)
    before = (place / "out" / RESULTS).read_bytes()
    assert main(["study", str(place / "design.yaml"), "--out", str(place / "out")]) == 0
    assert "2 cells, 2 are there; about 0.0 h" in capsys.readouterr().out
    kept, elsewhere = place / "kept.jsonl", place / "elsewhere"
    kept.write_bytes(before)
    assert main(["study", str(place / "design.yaml"), "--out", str(elsewhere), "--results", str(kept)]) == 0
    assert kept.read_bytes() == before


def test_a_cell_that_another_process_runs_is_left_to_it(place: Path, tmp_path: Path) -> None:
    study = read_study(place / "design.yaml")
    runner, results = Runner(tmp_path), Results()
    cell = wanted(study, TASKS, results)[0]
    (tmp_path / "cells").mkdir()
    code = f"""if True:
        from pathlib import Path
        from mmdora.outputs.lock import locked_file
        with locked_file(Path({str(tmp_path / "cells" / cell.key)!r} + ".json")):
            print("held", flush=True)
            input()
    """
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdin and other.stdout and other.stdout.readline() == "held\n"
        assert runner.one(study, cell, results) is False
        other.stdin.write("\n")
        other.stdin.close()


def test_a_cell_run_again_scores_the_same_or_the_command_fails(place: Path, capsys: Any) -> None:
    known = place / "known.jsonl"
    known.write_bytes((place / "out" / RESULTS).read_bytes())
    tokens = ["study", str(place / "design.yaml"), "--out", str(place / "fresh"), "--results", str(known)]
    assert main([*tokens, "--again", "1"]) == 0
    assert "every answer scores the same" in capsys.readouterr().out
    results = read_results([known])
    for line in results.cells.values():
        line["each"] = packed([-1.0] * sum(results.tasks["tiny-llava", "few"]["questions_per_picture"]))
    results.write(known)
    assert main([*tokens, "--again", "1"]) == 2
    assert "does not score as in" in capsys.readouterr().err
    assert main([*tokens, "--again", "9"]) == 2
    assert "--again 9: there are results of 2 cells" in capsys.readouterr().err


class Made:
    """Stands for training: a line whose scores follow from the cell, and takes no time."""

    def __init__(self, gain: float):
        self.gain, self.cells = gain, list[str]()

    def __call__(self, cell: Cell, splits: Any, run: Path, own: Any) -> dict[str, Any]:
        self.cells.append(f"{cell.arm} {cell.rate:g} {cell.seed}")
        right = 0.5 + self.gain * (next(iter(cell.adapt.values())).method == "dora") - 0.1 * (cell.rate != 3e-3)
        each = [float(i < right * 12) for i in range(sum(splits.questions_per_picture))]
        return {
            **{"kind": "cell", "key": cell.key, **cell.settings, "validation": right, "test": right},
            **{"each": packed(each), "trainable": 9, "cpu_seconds": 1.0, "seconds": 1.0, "data": splits.digest},
        }


@pytest.mark.parametrize(("gain", "said"), [(0.5, "Take DoRA r8 on all places"), (0.0, "Take LoRA r8 on all places")])
def test_advice_on_ones_own_records_follows_the_scores(
    gain: float, said: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    made = Made(gain)
    monkeypatch.setattr(running, "run_cell", made)
    monkeypatch.setattr(running, "reference", reference_of)
    data = ["--data", str(place / "out/data/few"), "--task", "scenes-count"]
    assert main(["study", *data, "--budget", "1h", "--out", str(tmp_path)]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(said) and "at a peak rate of 0.003" in last and "95% intervals over 3 seeds" in last
    methods = {method: {cell for cell in made.cells if cell.startswith(method)} for method in ("LoRA r8", "DoRA r8")}
    assert {len(own) for own in methods.values()} == {5 + 2}, "the same rates and seeds for every method"
    assert len({re.sub(r" \S+ \d$", "", cell) for cell in made.cells}) == 6, "other ranks and places were tried"


def reference_of(base: str, task: StudyTask, splits: Any, own: Any) -> dict[str, Any]:
    return {
        **{"kind": "task", "base": base, "task": task.name, "base_score": 0.1, "question_only": 0.1},
        **{"questions_per_picture": splits.questions_per_picture, "data": splits.digest, "train_questions": 9},
    }


def test_too_small_a_budget_is_one_line(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(running, "run_cell", Made(0.0))
    monkeypatch.setattr(running, "reference", reference_of)
    monkeypatch.setattr(Runner, "seconds_a_cell", 600.0)
    data = ["--data", str(place / "out/data/few"), "--task", "scenes-count"]
    assert main(["study", *data, "--budget", "30m", "--out", str(tmp_path)]) == 2
    assert "2 methods at 3 rates are 6 cells of 600 s, and 3 fit" in capsys.readouterr().err


def test_the_key_of_a_cell_changes_with_all_that_decides_it(place: Path) -> None:
    cell = wanted(read_study(place / "design.yaml"), TASKS, Results())[0]
    others = [
        replace(cell, seed=1),
        replace(cell, rate=2e-3),
        replace(cell, task=replace(FEW, steps=3)),
        replace(cell, task=replace(FEW, rows=3)),
        replace(cell, base="tiny-vlbart"),
        replace(cell, adapt={"vision": cell.adapt["vision"]}),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 7
    assert replace(cell, arm="another name").key == cell.key
