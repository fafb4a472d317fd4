"""Findings and the report, from results that are made up so that what they must say is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from study_designs import written

from mmdora.cli import main
from mmdora.errors import MmdoraError
from mmdora.study.cells import Cell, Group, wanted
from mmdora.study.design import Study, read_study
from mmdora.study.findings import curves, mean_widths, pairs
from mmdora.study.report import sentence, write_report
from mmdora.study.results import Results, packed, read_results, unpacked
from mmdora.study.tasks import TASKS

TASK_NAMES = ("names", "count", "pope")
QUESTIONS = 200


def made_up(study: Study, gain: float, tasks: tuple[str, ...] = TASK_NAMES) -> Results:
    """Results whose scores fall off from the rate 0.0032, and DoRA's are better by `gain`."""
    results = Results()
    for task in tasks:
        results.add(
            {"kind": "task", "base": "tiny-llava", "task": task, "base_score": 0.1, "question_only": 0.3}
            | {"train_questions": 1000, "questions_per_picture": [1] * QUESTIONS, "data": "x", "retained": 0.9}
        )
    for _ in range(2):  # The later seeds are known once the search is there.
        for cell in wanted(study, TASKS, results):
            if cell.task.name in tasks and cell.key not in results.cells:
                results.add(line_of(cell, gain))
    return results


def line_of(cell: Cell, gain: float) -> dict[str, object]:
    random = np.random.default_rng(int(cell.key[:8], 16))
    truth = 0.6 + gain * (cell.arm == "DoRA r4") - 0.2 * abs(np.log10(cell.rate / 3.2e-3))
    each = (np.random.default_rng(0).random(QUESTIONS) * 0.9 + random.random(QUESTIONS) * 0.1 < truth).astype(float)
    return {
        **{"kind": "cell", "key": cell.key, **cell.settings, "validation": truth, "test": float(each.mean())},
        **{"each": packed(list(each)), "trainable": 99, "cpu_seconds": 2.0, "seconds": 4.0, "data": "x"},
        **{"retained": 0.7 - 0.2 * (cell.arm == "DoRA r4"), "train_peak_bytes": 2**30},
    }


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read_study(written(tmp_path, tasks=list(TASK_NAMES), shared_rate=1e-3))


def test_a_planted_gain_is_found_and_its_absence_is_no_difference(study: Study) -> None:
    better = pairs(study, TASKS, made_up(study, 0.1), shared=False)[0]
    assert better.mean is not None and better.mean.seen and better.counts == (3, 0, 0)
    assert sentence(better).startswith("DoRA r4 is ahead")
    same = pairs(study, TASKS, made_up(study, 0.0), shared=False)[0]
    assert same.mean is not None and not same.mean.seen and same.counts == (0, 3, 0)
    assert sentence(same).startswith("No difference seen")


def test_a_task_with_one_seed_or_near_its_ceiling_is_shown_and_not_counted(study: Study) -> None:
    results = made_up(study, 0.1)
    for line in results.cells.values():
        if line["task"] == "names":
            line["test"] = 0.96
        if line["task"] == "count" and line["training"]["seed"] == 1:
            line["key"] = "gone"
    for key in [key for key, line in results.cells.items() if line["key"] == "gone"]:
        del results.cells[key]
    found = pairs(study, TASKS, results, shared=False)[0]
    said = {one.task: one.verdict for one in found.tasks}
    assert said == {
        "names": "near floor or ceiling: not counted", "count": "one seed: not counted", "pope": "second ahead",
    }  # fmt: skip
    assert found.counts == (1, 0, 0) and "over 1 task;" in sentence(found)
    none = pairs(study, TASKS, made_up(study, 0.1, ("count",)), shared=False)[0]
    only = replace(
        none, tasks=[replace(none.tasks[0], difference=replace(none.tasks[0].difference, seeds=1))], mean=None
    )
    assert sentence(only).startswith(
        "Nothing is concluded yet: no task has two seeds of both arms and a score of LoRA r4"
    )


def test_the_rate_is_chosen_by_validation_and_not_by_test(study: Study) -> None:
    results = made_up(study, 0.0)
    group = Group(study, "tiny-llava", TASKS["names"], "DoRA r4")
    for cell in group.search():
        line = results.cells[cell.key]
        line["test"], line["validation"] = line["validation"], 0.9 if cell.rate == 1e-2 else 0.1
    assert group.chosen(results) == 1e-2


def test_one_rate_is_missing_and_nothing_is_said_of_that_task(study: Study) -> None:
    results = made_up(study, 0.1)
    del results.cells[Group(study, "tiny-llava", TASKS["count"], "LoRA r4").search()[0].key]
    best, shared = (pairs(study, TASKS, results, shared=how)[0] for how in (False, True))
    assert [one.task for one in best.tasks] == ["names", "pope"]
    assert len(shared.tasks) == 3  # At the shared rate the missing cell is that of one seed.


def test_ranges_are_those_within_a_point(study: Study) -> None:
    found = curves(study, TASKS, made_up(study, 0.0))
    assert {curve.range for curve in found} == {(0.0032, 0.0032)}
    assert mean_widths(study, found) == {"LoRA r4": 0.0, "DoRA r4": 0.0}


def test_the_report_follows_from_the_results_alone(study: Study, tmp_path: Path) -> None:
    results = made_up(study, 0.1, TASK_NAMES[:2])
    file = tmp_path / "kept" / "results.jsonl"
    results.write(file)
    assert read_results([file]) == results
    for folder in ("one", "two"):
        report = tmp_path / folder / "evidence.md"
        tokens = ["--results", str(file), "--report", str(report), "--only-report", "--out", str(tmp_path / "out")]
        assert main(["study", str(tmp_path / "design.yaml"), *tokens]) == 0
    text = (tmp_path / "one/evidence.md").read_text(encoding="utf-8")
    assert text == (tmp_path / "two/evidence.md").read_text(encoding="utf-8")
    assert "20 of 30 cells" in text and "DoRA r4 is ahead" in text and "not run yet" in text
    assert "it answers 90.0% right, after LoRA r4 70.0% and after DoRA r4 50.0% (mean over tasks)" in text
    assert "| names | DoRA r4 | 1 | " in text and " / 50.0 |" in text
    assert "training 1,024 instead of 1,024 MiB at its peak" in text and "which took 0.01 hours of a CPU core" in text
    plots = [(tmp_path / folder / "evidence/design.svg").read_bytes() for folder in ("one", "two")]
    assert plots[0] == plots[1] and plots[0].count(b"<svg") == 1
    assert not (tmp_path / "out").exists(), "a report runs nothing"


def test_a_study_without_results_says_so(study: Study, tmp_path: Path) -> None:
    write_report({Path("design.yaml"): study}, TASKS, Results(), tmp_path / "evidence.md", "x")
    assert "Nothing can be said yet" in (tmp_path / "evidence.md").read_text(encoding="utf-8")


def test_the_committed_page_is_what_the_committed_results_say(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    kept = read_results([root / "docs/evidence/results.jsonl"])
    studies = {path: read_study(path) for path in sorted((root / "configs/study").glob("*.yaml"))}
    write_report(studies, TASKS, kept, tmp_path / "evidence.md", "`docs/evidence/results.jsonl`")
    assert (tmp_path / "evidence.md").read_text(encoding="utf-8") == (root / "docs/evidence.md").read_text("utf-8")
    drawn = {path.name for path in (tmp_path / "evidence").glob("*.svg")}
    assert drawn == {path.name for path in (root / "docs/evidence").glob("*.svg")}


def test_scores_are_packed_without_loss() -> None:
    for each in ([1.0, 0.0, 1.0] * 7, [0.25, 1.0], [0.0] * 8):
        assert unpacked(packed(each)).tolist() == each
    assert packed([1.0, 0.0]) == "2:80"


def test_results_of_two_versions_of_the_data_are_refused(study: Study, tmp_path: Path) -> None:
    results = made_up(study, 0.0)
    next(iter(results.cells.values()))["data"] = "another"
    results.write(tmp_path / "results.jsonl")
    with pytest.raises(MmdoraError, match="two versions of its data"):
        read_results([tmp_path / "results.jsonl"])
    (tmp_path / "broken.jsonl").write_text('{"kind": "cell"}\n', encoding="utf-8")
    with pytest.raises(MmdoraError, match=r"broken\.jsonl:1: no result of a study"):
        read_results([tmp_path / "broken.jsonl"])
