"""`mmdora analyze` turns runs and adapters into rows, tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmdora.analysis.page import check, write
from mmdora.analysis.points import points_of
from mmdora.analysis.rows import Base, MappedAdapter, WeightRow, shared
from mmdora.errors import MmdoraError
from mmdora.models.locate import locate
from mmdora.train.ranks import RANKS, read_ranks


def analyze(
    runs: Path | str | Mapping[str, Path | str], *, out: Path | str | None = None, say: Callable[[str], Any] = print
) -> list[WeightRow]:
    """Measure how far each checkpoint of each run moved every weight of its base, in magnitude and in direction.

    No model is built. Base and adapters are read from their safetensors files a tensor at a time. This needs memory for
    the largest tensor in fp32, and for the square of the shorter side of a matrix in fp64.

    Args:
        runs: a run folder (`checkpoint-N/`, `adapter/`) or the folder of an adapter, which may be PEFT's; or a mapping
            of names to several of these.
        out: folder to write decomposition.csv, the pictures and analysis.html to; None writes nothing.
        say: receives the lines meant for a person, such as the name of a checkpoint that is damaged.

    Returns:
        A row for each weight in each checkpoint, sorted by run and then by checkpoint.

    Raises:
        MmdoraError: if a run has no undamaged adapter, an adapter belongs to another base, or the files of a base
            cannot be read tensor by tensor.
    """
    named = dict(runs) if isinstance(runs, Mapping) else {Path(runs).name: runs}
    if not named:
        raise MmdoraError("analyze: name at least one run")
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise MmdoraError(f"{out}: is a file; name a folder to write to")
    if out is not None:
        check(Path(out))
    bases: dict[str, Base] = {}
    rows = [row for name, run in named.items() for row in _rows(name, Path(run), bases, say)]
    if out is not None:
        chose = {name: Path(run) for name, run in named.items() if (Path(run) / RANKS).is_file()}
        write(rows, Path(out), {name: read_ranks(run) for name, run in chose.items()})
    return rows


def _rows(name: str, run: Path, bases: dict[str, Base], say: Callable[[str], Any]) -> list[WeightRow]:
    points, rows, problem = points_of(run, say), [], None
    with tqdm(desc=f"analyzing {name}", unit="weight", leave=False, delay=1, disable=None) as bar:
        for index, point in enumerate(points):
            try:
                location = locate(point.folder)
                if location.quantize is not None:
                    raise MmdoraError(
                        f"{point.folder}: was trained on {location.quantize.type} weights, which are not in the files "
                        "of its base; analyze measures runs on unquantised bases"
                    )
                base_name = location.base
                if base_name not in bases:
                    bases[base_name] = Base(base_name)
                adapter = MappedAdapter(name, point, bases[base_name])
            except MmdoraError as error:
                if len(points) == 1:
                    raise
                problem = error
                say(f"warning: {error}; passed over")
                continue
            bar.total = bar.n + len(adapter) * (len(points) - index)
            weights = []
            for row in adapter:
                weights.append(row)
                bar.update()
            rows += shared(weights)
    if not rows:
        raise problem or MmdoraError(f"{run}: its plan adapts no weights, so there is nothing to analyze")
    return rows
