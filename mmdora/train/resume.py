"""Finds the checkpoint that a resumed run goes on from, and checks that it is the same run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmdora.adapt.fingerprint import same_base
from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.models.locate import lasting_path
from mmdora.train.checkpoint import STATE, best_problem, checkpoints, manifest_of, newest, step_of

CONFIG, DONE = "config.yaml", "complete.json"
WRITTEN = ("README.md", "plan.txt", "ranks.json", "log.jsonl", "adapter", "checkpoint-*", "tensorboard", DONE)
"""What a run writes after its config; where there is no config, it is somebody else's."""
ACCUMULATION = "training.accumulation"
FREE_ON_RESUME = {
    "data.workers",
    "training.find_batch_size",
    "training.keep",
    "training.output",
}
"""Keys that a resume may change, because they affect neither what is computed nor what is logged."""


def find_checkpoint(
    output: Path, resume: bool | Path, say: Callable[[str], None]
) -> tuple[Path | None, dict[str, Any] | None]:
    """Find the checkpoint to resume from, and the facts about its run; None and None for a fresh run.

    A run that was killed before its first checkpoint begins anew: then the checkpoint is None, but the facts are given.
    """
    if output.exists() and not output.is_dir():
        raise MmdoraError(f"training.output: {output} is a file, not a folder")
    if not resume:
        if (output / CONFIG).exists():
            raise MmdoraError(f"training.output: {output} holds a run; use --resume, or another folder")
        for name in WRITTEN:
            if there := next(output.glob(name), None):
                raise MmdoraError(f"training.output: {there} is there, and no run wrote it; give another folder")
        return None, None
    if isinstance(resume, Path):
        _check_newest(resume, output)
        checkpoint = resume
    elif (checkpoint := newest(output, say)) is None:
        if checkpoints(output):
            raise MmdoraError(f"--resume: no checkpoint in {output} is whole; start anew in another folder")
        if (output / DONE).exists() or not (output / CONFIG).exists():
            raise MmdoraError(f"--resume: no checkpoint in {output}")
        say(f"{output} has no checkpoint yet: starting from the beginning")
        return None, {"config": _saved_config(output)}
    known = {**manifest_of(checkpoint), "config": _saved_config(checkpoint.parent)}
    return checkpoint, {**known, "best_problem": best_problem(checkpoint)}


def _check_newest(checkpoint: Path, output: Path) -> None:
    """Raise an MmdoraError if `output` holds a later checkpoint, which the next --resume would take for the newest."""
    later, given = newest(output, lambda line: None), checkpoint.resolve()
    if later is not None and (given.parent != output.resolve() or step_of(later) > step_of(given)):
        raise MmdoraError(
            f"--resume {checkpoint}: a later --resume would take {later} for the newest of this run; "
            "move it away, or go on in another folder (training.output)"
        )


def _saved_config(output: Path) -> dict[str, Any]:
    path = output / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        raise MmdoraError(f"--resume: {path} is missing or damaged; put back the config that the run was started with")
    return config


def check_changes(
    config: RunConfig,
    before: Mapping[str, Any],
    facts: Mapping[str, Any],
    allow: bool,
    say: Callable[[str], None],
) -> None:
    """Raise an MmdoraError if config, data or base differ from those of the stopped run; with `allow`, only report it.

    It is called with the facts that are known before the model is loaded, and again with the base's fingerprint.
    """
    processes = (before.get("processes", 1) if "step" in before else facts["processes"], facts["processes"])
    moved = _Moved(before["config"], config.training.output)
    changed = [
        f"{key}: {old!r} -> {new!r}"
        for key, old, new in _differences(before["config"], config.to_dict())
        if key not in FREE_ON_RESUME and key != ACCUMULATION and not moved.same_path(old, new)
    ]
    changed += _rows_per_step(before["config"], config.to_dict(), processes)
    contents = {where: content for path, content in before.get("data", {}).items() for where in moved.places(path)}
    for path, content in facts["data"].items():
        if contents.get(path, content) != content:
            changed.append(f"the content of {path}")
    for what, now in facts.get("stream", {}).items():
        if (then := before.get("stream", {}).get(what, now)) != now:
            changed.append(f"{what}, on which the order of a stream depends: {then} -> {now}")
    if "base" in facts and (difference := same_base(before.get("base") or facts["base"], facts["base"])):
        changed.append(f"the base: {difference}")
    if problem := before.get("best_problem"):
        changed.append(
            f"the best checkpoint so far: {problem} (without it the best of the later ones, or else the last, is taken)"
        )
    if changed and not allow:
        raise MmdoraError(
            f"--resume: not the run in {config.training.output}: {'; '.join(changed)}; undo that, "
            "start anew in another folder, or add --allow-changes"
        )
    if changed and "base" in facts:
        say(f"warning: resuming although this changed: {'; '.join(changed)}")


class _Moved:
    """Where the paths in a saved config lie now: at the same place, or moved together with the run folder.

    Args:
        saved: the config of the run that is resumed.
        output: its run folder now.
    """

    def __init__(self, saved: Mapping[str, Any], output: Path):
        then = saved.get("training", {}).get("output")
        self.then = Path(then if isinstance(then, str) else output).absolute()
        self.now = output.absolute()

    def places(self, path: str) -> list[str]:
        """Where a saved path may lie now: beside the run folder as it did then, or at its own place.

        Before 0.2 mmdora saved a path as it was typed, and now as absolute.
        """
        lasting = lasting_path(Path(path))
        beside = os.path.relpath(str(lasting), self.then)
        return [os.path.normpath(self.now / beside), str(lasting)]

    def same_path(self, old: Any, new: Any) -> bool:
        """Whether a value of the saved config and one of today's are paths of the same file or folder."""
        return isinstance(old, str) and isinstance(new, str) and new in self.places(old)


def _rows_per_step(old: Any, new: Any, processes: tuple[int, int]) -> list[str]:
    """Phrases that say how the number of micro-batches in a step has changed; an empty list if it has not.

    If the number of processes changes, micro-batches may move from one process to another, but their number must not
    change.
    """
    accumulations = [config.get("training", {}).get("accumulation", 1) for config in (old, new)]
    before, now = (count * accumulation for count, accumulation in zip(processes, accumulations, strict=True))
    if before == now:
        return []
    if processes[0] == processes[1]:
        return [f"{ACCUMULATION}: {accumulations[0]} -> {accumulations[1]}"]
    fitting = f"; --{ACCUMULATION} {before // processes[1]} keeps it" if before % processes[1] == 0 else ""
    return [
        f"the micro-batches of a step: {before} (processes {processes[0]}, {ACCUMULATION} {accumulations[0]}) -> "
        f"{now} ({processes[1]}, {accumulations[1]}){fitting}"
    ]


def steps_done(checkpoint: Path) -> int:
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["global_step"]


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(set(old) | set(new))
        return [d for n in names for d in _differences(old.get(n), new.get(n), f"{key}.{n}".lstrip("."))]
    return [] if old == new else [(key, old, new)]
