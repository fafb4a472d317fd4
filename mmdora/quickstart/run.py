"""`mmdora quickstart` runs the whole path on real data; `Quickstart` has a method for each step."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.outputs.lock import locked
from mmdora.outputs.written import FILES, Written
from mmdora.quickstart.families import FAMILIES, of_base
from mmdora.quickstart.steps import duration
from mmdora.quickstart.whole_path import HOST, REPORT, Quickstart


def quickstart(
    out: Path | None = None,
    *,
    family: str = "llava",
    base: str | None = None,
    overrides: Iterable[str] = (),
    quick: bool = False,
    limit: int | None = None,
    port: int | None = 7860,
) -> Path:
    """Prepare data, train, evaluate, export, write a report, and open the page. Steps that are complete are not
    repeated.

    Args:
        out: folder for all results; by default runs/quickstart, or that with the name of family or base, with "-quick"
            if `quick`.
        family: one of `FAMILIES`.
        base: hub id or checkpoint folder of a pretrained vision-language model to adapt instead of the bundled one.
        overrides: config overrides for both runs, as for `mmdora train`.
        quick: take the short form: fewer training steps, and `QUICK_LIMIT` questions unless `limit` says how many.
        limit: the most questions of each task to evaluate on; None takes all.
        port: port of the page; None leaves the page out.

    Returns:
        The path of the report, `out/report.html`.
    """
    begun = time.monotonic()
    if port is not None:
        _check_port(port)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # A process that trains refuses to start if it sees several.
    if base is not None and family != "llava":
        raise MmdoraError(f"--base: the quickstart of {family} has a base of its own; leave out --family or --base")
    chosen = FAMILIES[family] if base is None else of_base(base)
    out = out or (chosen.out.with_name(f"{chosen.out.name}-quick") if quick else chosen.out)
    run = Quickstart(chosen, out, list(overrides), limit, quick)
    with locked(out):
        _check_report(out)
        run.base()
        run.data()
        run.train()
        run.evaluate()
        run.export()
        page = run.report(begun)
    run.console.print(f"\nfinished in {duration(time.monotonic() - begun)}: {page}", highlight=False)
    if port is not None:
        run.page(port)
    return page


def _check_report(out: Path) -> None:
    """Raise now if the report could not be written in the end."""
    if (out / "steps").is_dir() and not (out / "steps" / FILES).is_file():
        raise MmdoraError(f"{out}: was made by an earlier version of mmdora; move it away, or give another --out")
    Written(out).check(REPORT)


def _check_port(port: int) -> None:
    """Raise an MmdoraError if the port is taken, before minutes of training and not after them."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise MmdoraError(
                f"port {port} of {HOST} cannot be opened ({error}); end what uses it, or give --port N or --no-demo"
            ) from None
