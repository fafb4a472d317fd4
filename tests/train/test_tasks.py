"""Several tasks in one run of a VL-BART: validation per task, the best by their mean, a resume that is bit-equal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shrunken_vlbart import small_vlbart
from tiny_run import config_of, silent

from mmdora.data_prep import scenes
from mmdora.errors import MmdoraError
from mmdora.evaluate.run import evaluate
from mmdora.families import family_of
from mmdora.models.load import load
from mmdora.train import train
from mmdora.train.reach import unreached

KINDS = {"vqa": ("count", "scenes-count"), "nlvr": ("nlvr2", "scenes-nlvr2")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for part in small_vlbart("resnet"):
        part.save_pretrained(folder / "base")
    for kind, _ in KINDS.values():
        scenes.prepare(folder / kind, kind=kind, rows=5, held_out=2, workers=1)  # type: ignore
    return folder


def tree(home: Path, output: Path, **training: Any) -> dict[str, Any]:
    tasks = {
        name: {"train": str(home / kind / "train.jsonl"), "eval": str(home / kind / "test.jsonl"), "eval_task": task}
        for name, (kind, task) in KINDS.items()
    }
    low_rank = {"method": "dora", "rank": 2, "targets": ["q_proj", "v_proj"], "bias": True, "norms": True}
    return {
        "model": {"base": str(home / "base")},
        "adapt": {"projector": {"method": "full"}, "language": low_rank},
        "data": {"tasks": tasks, "eval_rows": 3},
        "training": {"output": str(output), "steps": 6, "batch_size": 3, "accumulation": 2, "lr": 1e-3, "log_every": 1,
                     "eval_every": 3, "save_every": 3, "keep": 9, "report_to": []} | training,
    }  # fmt: skip


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    values = tree(home, home / "run")
    values["data"]["eval_generate_rows"] = 2
    return train(config_of(values), say=silent)


def test_each_task_is_validated_and_their_mean_chooses(home: Path, run: Path) -> None:
    for ending in ("loss", "score"):
        means = [row[f"eval_{ending}"] for row in log(run) if f"eval_{ending}" in row]
        parts = [[row[f"eval_{name}_{ending}"] for row in log(run) if f"eval_{name}_{ending}" in row] for name in KINDS]
        assert len(means) == 2 and [sum(pair) / 2 for pair in zip(*parts, strict=True)] == pytest.approx(means)
    assert "best_eval_score" in json.loads((run / "complete.json").read_text())
    model, processor = load(run)
    from mmdora.records.reader import read_records

    records = read_records(home / "nlvr2/test.jsonl")
    scored = evaluate(model, processor, [records[0], records[1]], task="scenes-nlvr2")
    assert scored.scores is not None
    last = [row["eval_nlvr_score"] for row in log(run) if "eval_nlvr_score" in row]
    assert scored.scores.overall.value in last, "what training saw is what evaluation finds"


def test_the_readme_names_every_task(home: Path, run: Path) -> None:
    text = (run / "README.md").read_text()
    assert "tasks: vqa 10 (33%), nlvr 20 (67%)" in text
    assert f"- nlvr: `{home / 'nlvr2/train.jsonl'}`, held out: `{home / 'nlvr2/test.jsonl'}`" in text


def test_a_resumed_run_is_the_same_to_the_bit(home: Path, run: Path) -> None:
    values = tree(home, home / "again")
    values["data"]["eval_generate_rows"] = 2
    shutil.copytree(run, home / "again", ignore=shutil.ignore_patterns("checkpoint-6", "complete.json", "adapter"))
    train(config_of(values), resume=True, say=silent)
    first, second = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (run, home / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    losses = [[row["loss"] for row in log(folder) if "loss" in row] for folder in (run, home / "again")]
    assert losses[0] == losses[1]


def test_reach_looks_at_each_task(home: Path) -> None:
    from mmdora.train.processes import Processes
    from mmdora.train.sources import read_sources, rows_of

    config = config_of(tree(home, home / "reach"))
    model, processor = load(str(home / "base"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "visual_embedding" in name
    sources = read_sources(config)
    rows = rows_of(sources, family_of(processor), config, Processes(config.training))
    found = unreached(model, family_of(processor).batch, rows)  # type: ignore
    assert set(found) == {"image of vqa", "image of nlvr"}
    assert not any(found.values())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"tasks": {}}, r"data: tasks is empty"),
        ({"train": "a.jsonl"}, r"data: train is not for several tasks"),
        ({"eval_task": "gqa"}, r"data: eval_task belongs to each"),
        ({"tasks": {"a b": {"train": "x"}}}, r"the name 'a b' must consist of"),
        ({"tasks": {"vqa": {"trian": "x"}}}, r"data\.tasks\.vqa\.trian: unknown key; did you mean 'train'"),
        ({"tasks": {"vqa": {"eval": "x"}}}, r"data\.tasks\.vqa\.train"),
    ],
)
def test_tasks_that_do_not_fit_together(home: Path, data: dict[str, Any], message: str) -> None:
    values = tree(home, home / "bad")
    values["data"] |= data
    with pytest.raises(MmdoraError, match=message):
        config_of(values)


def test_a_task_without_a_prompt_is_refused(home: Path) -> None:
    values = tree(home, home / "quiz")
    values["data"]["tasks"] = {"quiz": values["data"]["tasks"]["vqa"]}
    with pytest.raises(MmdoraError, match="unknown task 'quiz'"):
        train(config_of(values), say=silent)
