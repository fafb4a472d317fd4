"""`mmdora train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mmdora.cli.app import Flag, Overrides, app
from mmdora.cli.named import check_config
from mmdora.errors import MmdoraError


def _config_help(*args: Any) -> None:
    from mmdora.cli.config_help import draw

    draw(*args)


@app.command(sort_key=3, help_formatter=_config_help)
def train(
    config: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    /,
    *overrides: Overrides,
    resume: Annotated[list[Path] | None, Parameter(consume_multiple=(0, 1))] = None,
    allow_changes: Annotated[bool, Flag] = False,
    dry_run: Annotated[bool, Flag] = False,
    trust_remote_code: Annotated[bool, Flag] = False,
) -> None:
    """Train adapters as a config file says, and write a run folder.

    Every config key can be overridden on the command line. The resolved config is saved in the run
    folder (`training.output`), beside the plan, the log, TensorBoard files, checkpoints and adapter.

    SIGTERM and Ctrl-C finish the step in hand, save a checkpoint and exit with 143 or 130; a second
    Ctrl-C stops at once. A resumed run repeats the undisturbed one bit for bit (on a CPU).

    Examples: `mmdora train configs/tiny/dora.yaml --adapt.language.rank 16`;
    `mmdora train configs/tiny/dora.yaml --resume`

    Parameters
    ----------
    config
        YAML file with the sections model, adapt, data, training.
    resume
        Continue from the newest whole checkpoint, or from the one given.
    allow_changes
        Resume although config, data or base are not those of the stopped run.
    dry_run
        Show the plan and one decoded batch with its loss mask; train nothing.
    trust_remote_code
        Run code that the base brings along.
    """
    from mmdora.config import load_config

    if str(config).startswith("-"):
        raise MmdoraError(f"train: {config} comes behind the config file: mmdora train CONFIG.yaml {config} …")
    settings = load_config(config, overrides)
    check_config(settings)
    if dry_run:
        from mmdora.train import overview

        return overview.show_batch(settings, trust_remote_code=trust_remote_code)
    from mmdora.train import train as run

    folder = run(
        settings,
        resume=resume[0] if resume else resume is not None,
        allow_changes=allow_changes,
        trust_remote_code=trust_remote_code,
    )
    if os.environ.get("RANK", "0") == "0":  # only one of a launcher's processes prints
        print(f"done: {folder}; next: mmdora eval {folder} --data RECORDS.jsonl, or mmdora export {folder} OUT")
