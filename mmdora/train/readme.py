"""Writes the README.md of a run folder: command, result, data, plan, and what each file is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdora.config import RunConfig
from mmdora.version import __version__

FILES = {
    "config.yaml": "every setting, overrides included: `mmdora train config.yaml` repeats the run elsewhere",
    "plan.txt": "what is adapted, and what was left out and why",
    "ranks.json": "with `adapt.rank: auto`: the rank of each module, and the singular values that it was chosen by",
    "log.jsonl": "a line per log: step, loss, gradient norm, learning rates, rows per second, evaluations",
    "tensorboard/": "the same for `tensorboard --logdir`",
    "checkpoint-*/": "to resume from: adapter, optimizer, schedule, random states; `manifest.json` has checksums",
    "adapter/": "the result: files in PEFT's format, and `mmdora.json` with the plan and the base's fingerprint",
    "complete.json": "written last: without it the run is not at its end",
}


def readme(config: RunConfig, plan: str, data: str, command: list[str], done: Mapping[str, Any] | None) -> str:
    """The README as Markdown.

    Args:
        plan: text for people that says what is adapted.
        data: a line with the numbers of rows and images.
        command: the command as it was given, without the interpreter.
        done: the content of `complete.json`, or None while the run goes on.
    """
    folder = config.training.output
    base = config.base
    parts = [
        f"# {folder.name}",
        f"`{Path(base).name if Path(base).exists() else base}` adapted by mmdora {__version__}.",
    ]
    parts.append(f"## Command\n\n```\n{shlex.join(command)}\n```")
    if done is None:
        parts.append("## Result\n\nNot complete. `--resume` goes on from the newest whole checkpoint.")
    else:
        rows = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in done.items())
        after = f"Next: `mmdora eval {folder} --data RECORDS`, `mmdora export {folder} OUT`."
        parts.append(f"## Result\n\n| | |\n|---|---|\n{rows}\n\n{after}")
    parts.append(f"## Data\n\n{data}\n")
    for task, source in config.data.sources.items():
        held_out = f", held out: `{source.eval}`" if source.eval else ""
        parts[-1] += f"\n- {task or 'train'}: `{source.train}`{held_out}"
    parts.append(f"## Plan\n\n```\n{plan}\n```")
    parts.append("## Files\n\n" + "\n".join(f"- `{name}`: {what}" for name, what in FILES.items()))
    return "\n\n".join(parts) + "\n"
