"""Answers scored while training, the end of a run that gets no better, and what needs a package that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import config_of, curve, first_turns, held_out_of, same_run, silent, tree_for

from mmdora.errors import MmdoraError
from mmdora.train import early_stopping, train
from mmdora.train.early_stopping import LOSS, SCORE, EarlyStopping


def history(metric: str, *values: float) -> list[dict[str, float]]:
    return [{"loss": 1.0}, *({metric: value} for value in values)]


@pytest.mark.parametrize(
    ("metric", "values", "ends"),
    [
        (SCORE, (0.1, 0.2, 0.2, 0.2), True),
        (SCORE, (0.1, 0.2, 0.2, 0.21), False),
        (SCORE, (0.2, 0.1), False),
        (SCORE, (0.5, 0.1, 0.3, 0.4), True),
        (LOSS, (2.0, 1.0, 1.0, 1.5), True),
        (LOSS, (2.0, 1.0, 1.5, 0.9), False),
        (SCORE, (), False),
    ],
)
def test_two_results_in_turn_that_are_no_better_end_it(metric: str, values: tuple[float, ...], ends: bool) -> None:
    assert EarlyStopping(2, metric).exhausted(history(metric, *values)) is ends


@pytest.fixture
def held_out(scene_records: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Records to train on and others to evaluate on."""
    train_on = first_turns(scene_records, 8)
    return train_on, held_out_of(train_on)


def scores_of(run: Path) -> list[float]:
    return [entry[SCORE] for entry in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if SCORE in entry]


def tree(held_out: tuple[Path, Path], output: Path, **training: object) -> dict:
    values = tree_for(held_out[0], output, evaluates=False, **training)
    values["data"] |= {"eval": str(held_out[1]), "eval_rows": 2, "eval_generate_rows": 3}
    return values


def test_answers_are_scored_and_change_nothing(held_out: tuple[Path, Path], tmp_path: Path) -> None:
    schedule = {"steps": 4, "eval_every": 2, "save_every": 2}
    plain, scored = tree(held_out, tmp_path / "plain", **schedule), tree(held_out, tmp_path / "scored", **schedule)
    del plain["data"]["eval_generate_rows"]
    train(config_of(plain), say=silent)
    train(config_of(scored), say=silent)
    losses = [[entry["loss"] for entry in curve(tmp_path / name) if "loss" in entry] for name in ("plain", "scored")]
    assert losses[0] == losses[1], "generation took random numbers from the run"
    scores = scores_of(tmp_path / "scored")
    assert len(scores) == 2 and all(0 <= score <= 1 for score in scores)
    assert not scores_of(tmp_path / "plain")
    done = json.loads((tmp_path / "scored" / "complete.json").read_text())
    assert done["best_eval_score"] == max(scores)
    explained = (tmp_path / "scored" / "README.md").read_text()
    assert "held-out-3.jsonl" in explained and "best eval score" in explained and "config.yaml" in explained


def test_a_run_stops_early_also_after_a_resume(
    held_out: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_stopping.Answers, "score", lambda self, model: 0.5)
    schedule = {"steps": 8, "eval_every": 1, "save_every": 1, "early_stopping": 2, "keep": 9}
    whole, cut = (config_of(tree(held_out, tmp_path / name, **schedule)) for name in ("whole", "cut"))
    train(whole, say=silent)
    assert json.loads((tmp_path / "whole" / "complete.json").read_text())["steps"] == 3

    def killed(self: object, model: object) -> float:
        killed.calls += 1
        if killed.calls == 3:
            raise KeyboardInterrupt
        return 0.5

    killed.calls = 0
    monkeypatch.setattr(early_stopping.Answers, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        train(cut, say=silent)
    monkeypatch.setattr(early_stopping.Answers, "score", lambda self, model: 0.5)
    train(cut, resume=True, say=silent)
    assert same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("training", {"report_to": ["wandb"]}, "wandb is not installed"),
        ("training", {"report_to": ["trackio"]}, "trackio is not installed"),
        ("training", {"optimizer": "adamw_8bit"}, "adamw_8bit needs a CUDA device"),
        ("training", {"early_stopping": 2, "eval_every": None}, "early_stopping is set but data.eval is not"),
        ("data", {"eval_generate_rows": 2}, "eval_generate_rows is set but data.eval is not"),
    ],
)
def test_what_is_missing_is_said_before_the_model_is_loaded(
    section: str, values: dict, message: str, scene_records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmdora.train.check.find_spec", lambda name: None)
    monkeypatch.setattr("mmdora.train.loading.load", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tree_for(scene_records, tmp_path / "run", evaluates=False)
    config["training"]["report_to"] = []
    config[section] |= values
    with pytest.raises(MmdoraError, match=message):
        train(config_of(config), say=silent)
    assert not (tmp_path / "run").exists()


def test_no_reporter_writes_no_file_of_its_own(scene_records: Path, tmp_path: Path) -> None:
    run, once = tmp_path / "run", {"steps": 1, "save_every": None, "report_to": []}
    train(config_of(tree_for(first_turns(scene_records, 4), run, evaluates=False, **once)), say=silent)
    assert not (run / "tensorboard").exists() and (run / "log.jsonl").exists()
