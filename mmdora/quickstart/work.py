"""The work of each step of the quickstart, and the config of each run."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmdora.adapt.inject import merge
from mmdora.config import RunConfig, load_config
from mmdora.errors import MmdoraError
from mmdora.evaluate.run import evaluate
from mmdora.export.run import export
from mmdora.models.load import load
from mmdora.models.locate import with_lasting_paths
from mmdora.outputs.written import set_aside
from mmdora.quickstart.families import Family
from mmdora.records.row import Row
from mmdora.train import train

CONFIGS = Path(__file__).parents[1] / "configs" / "tiny"

Say = Callable[[str], None]


def run_config(family: Family, name: str, out: Path, overrides: list[str]) -> RunConfig:
    """The shipped config of a run, with the quickstart's own base, data and folders.

    Raises:
        MmdoraError: if an override moves the data or the run folder.
    """
    data = out / "data"
    paths = {"training.output": out / name.rpartition("_")[2]}
    for task in family.tasks:
        key = f"data.tasks.{task}." if task else "data."
        paths |= {f"{key}train": data / task / "train.jsonl", f"{key}images": data / task}
    # A path as JSON is read back unchanged by YAML, whatever characters it has.
    ours = [f"--{key}={json.dumps(str(path))}" for key, path in paths.items()]
    if family.base is not None:
        ours.append(f"--model.base={json.dumps(family.base)}")
    config = load_config(CONFIGS / f"{name}.yaml", [*ours, *overrides])
    taken = [config.training.output, *(source.train for source in config.data.sources.values())]
    if taken != [path for key, path in paths.items() if not key.endswith("images")]:
        raise MmdoraError("command line: the quickstart has its own data and run folders; move them with --out")
    return config


def trained(config: RunConfig, say: Say) -> dict[str, Any]:
    """Train, or go on with a stopped run of the same config; returns the numbers in its `complete.json`."""
    run = config.training.output
    begun = (run / "config.yaml").is_file()
    same = begun and _same_settings(load_config(run / "config.yaml"), config)
    if (begun and not same) or (run / "complete.json").is_file():
        say("    " + _aside(run, "was made with other settings or data"))
        begun = False
    train(config, resume=begun, say=say)
    return json.loads((run / "complete.json").read_text(encoding="utf-8"))


def evaluated(
    source: str | Path, questions: Sequence[Row], task: str, folder: Path, *, adapted: bool
) -> dict[str, Any]:
    """Ask a model the questions of a task, and write its predictions and scores to `folder`.

    Args:
        source: a base, or the folder of a run.
        adapted: whether `source` is a run.
    """
    model, processor = load(source, device="cuda" if torch.cuda.is_available() else None)
    if adapted:
        merge(model)  # The export is merged too, and a merged model answers faster.
    evaluation = evaluate(model, processor, questions, task=task, out=folder, progress=True)
    del model
    gc.collect()
    assert evaluation.scores is not None  # They are missing only for records without answers.
    return evaluation.scores.to_dict()


def exported(run: Path, folder: Path, scores: Mapping[str, float | str], say: Say) -> str:
    """Export a run to `folder`; returns the result of the comparison with the unmerged model, as text."""
    if (folder / "config.json").is_file():  # Export writes to an empty folder only.
        say(_aside(folder, "was made of another run"))
    return str(export(run, folder, scores=scores, say=say))


def _same_settings(saved: RunConfig, config: RunConfig) -> bool:
    """Whether a saved config is this one, wherever its run folder lies."""
    return replace(saved, training=config.training) == with_lasting_paths(config) and saved.training == replace(
        config.training, output=saved.training.output
    )


def _aside(folder: Path, why: str) -> str:
    """Rename a folder; gives the line that says so."""
    return f"{folder} {why}; it is {set_aside(folder)} now, and is made anew"


def adapter_file(run: Path) -> Path:
    """The file with the weights of a run's adapter."""
    return run / "adapter" / "adapter_model.safetensors"
