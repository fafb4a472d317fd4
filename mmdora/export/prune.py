"""From a checkpoint to one of which a share of the weights is zero."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from mmdora.adapt.modality import find_parts
from mmdora.adapt.pruning import input_norms, prunable, prune
from mmdora.errors import MmdoraError
from mmdora.export.base import base_folder, copied_files
from mmdora.export.facts import shown_base
from mmdora.export.layout import save_checkpoint
from mmdora.export.place import beside, readable, writing
from mmdora.families import family_of
from mmdora.files import write_json
from mmdora.models.load import load, no_bars
from mmdora.models.locate import locate
from mmdora.outputs.folder import check_new_folder
from mmdora.records.reader import Records

RECORD = "pruning.json"
"""The file in a pruned checkpoint that says what was pruned, and how."""


@dataclass(frozen=True)
class Pruning:
    """How a checkpoint was pruned.

    Attributes:
        base: name of the checkpoint that was pruned; of a local folder its last name.
        method: "wanda" or "magnitude".
        pattern: "row" or "2:4".
        sparsity: share of each row that was set to zero.
        rows: number of rows that inputs were measured on; 0 for magnitude.
        zeros: name of a linear -> share of its weights that are zero.
        total: share of all weights of these linears that are zero.
    """

    base: str
    method: str
    pattern: str
    sparsity: float
    rows: int
    zeros: dict[str, float]
    total: float

    def __str__(self) -> str:
        by = f"{self.method} on {self.rows} rows" if self.rows else self.method
        return f"{self.total:.2%} of the weights of {len(self.zeros)} linear layers are zero, by {by} ({self.pattern})"


def prune_checkpoint(
    source: str | Path,
    out: Path,
    *,
    method: Literal["wanda", "magnitude"],
    sparsity: float,
    pattern: Literal["row", "2:4"] = "row",
    only: Sequence[str] = ("language",),
    records: Records | None = None,
    limit: int = 128,
    device: str | torch.device | None = None,
    say: Callable[[str], Any] = print,
) -> Pruning:
    """Write `source` with a share of the weights of its linears set to zero, as an ordinary checkpoint.

    Args:
        source: a checkpoint: folder, hub id or bundled name.
        out: a new or empty folder.
        method: what the weights of a row are compared by; see `adapt.pruning`.
        sparsity: share of each row that goes, above 0 and below 1; 0.5 with 2:4.
        pattern: "row": any weights of a row; "2:4": two of every four neighbours.
        only: modalities whose linears are pruned.
        records: rows to measure inputs on, for Wanda.
        limit: the most rows of these.
        device: to measure on; default: the CPU.
        say: receives a line about what was written.

    Raises:
        MmdoraError: `source` has an adapter, `out` is taken, or something does not fit together.
    """
    _check(method, sparsity, pattern, records)
    check_new_folder(out)
    location = locate(source)
    if location.adapter is not None:
        raise MmdoraError(f"{source}: has an adapter; write it into its base first (mmdora export), and prune that")
    base = base_folder(location.base)
    model, processor = load(location, dtype=None, device=device)
    linears, norms, count = prunable(model, find_parts(model), only), None, 0
    if method == "wanda":
        assert records is not None
        family, count = family_of(processor), min(limit, len(records))
        with input_norms(linears) as norms, torch.no_grad():
            for index in range(count):
                batch = {key: value for key, value in family.batch([records[index]]).items() if key != "samples"}
                model(**{k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()})
    zeros = prune(linears, norms, sparsity, pattern)
    weights = {name: linear.weight.numel() for name, linear in linears.items()}
    total = sum(zeros[name] * size for name, size in weights.items()) / sum(weights.values())
    done = Pruning(shown_base(location.base), method, pattern, sparsity, count, zeros, total)
    with beside(out) as folder, writing(out, sum(p.numel() * p.element_size() for p in model.parameters())):
        with no_bars():
            save_checkpoint(model.cpu(), folder)
        for path in copied_files(base):
            (folder / path.relative_to(base)).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / path.relative_to(base))
        _check_written(folder, sum(round(zeros[name] * size) for name, size in weights.items()))
        write_json(folder / RECORD, asdict(done))
        readable(folder)
    say(f"{out}: {done}")
    return done


def _check(method: str, sparsity: float, pattern: str, records: Records | None) -> None:
    if not 0 < sparsity < 1:
        raise MmdoraError(f"prune: --sparsity {sparsity:g}: give a share above 0 and below 1, such as 0.5")
    if pattern == "2:4" and sparsity != 0.5:
        raise MmdoraError(f"prune: --pattern 2:4 is a sparsity of 0.5, not {sparsity:g}; leave --sparsity out")
    if method == "wanda" and records is None:
        raise MmdoraError("prune: --method wanda measures inputs on rows; add --data ROWS, or use --method magnitude")
    if method == "magnitude" and records is not None:
        raise MmdoraError("prune: --method magnitude looks at no rows; leave --data out, or use --method wanda")


def _check_written(folder: Path, zeros: int) -> None:
    """Raise if the files hold fewer zeros than were made, which a wrong tensor or layout would show."""
    found = 0
    for path in folder.glob("*.safetensors"):
        found += sum(int((tensor == 0).sum()) for tensor in load_file(path).values())
    if found < zeros:
        raise MmdoraError(f"prune: the written files hold {found:,} zeros instead of {zeros:,}; nothing was written")
