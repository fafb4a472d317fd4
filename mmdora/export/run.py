"""From a run to an ordinary checkpoint: merge, write in the hub's layout, read back, compare.

The adapter is merged from disk, tensor by tensor (`merge_disk`), where the files of the base allow it, and else in
memory. Nothing appears at OUT before the written files were read back and hold what was trained (`parity`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mmdora.adapt.inject import apply
from mmdora.adapter_files.adapters import fill
from mmdora.config import RunConfig, load_config
from mmdora.errors import MmdoraError
from mmdora.export.base import base_folder, dtype_of
from mmdora.export.card import card
from mmdora.export.complete import complete
from mmdora.export.facts import (
    ExportFacts,
    licence_of,
    lineage_of,
    parity_facts,
    run_facts,
    shown_base,
    token_facts,
    versions,
)
from mmdora.export.merge_disk import DiskMerge
from mmdora.export.merge_memory import MergedModel
from mmdora.export.parity import LogitCheck, Parity, prompts
from mmdora.export.place import beside, readable, writing
from mmdora.export.prune import RECORD
from mmdora.export.quantized import dequantized_model, tell
from mmdora.export.shards import UnsureError
from mmdora.export.snippet import snippet
from mmdora.export.tensor_parity import TensorParity, TrainedModel, tensor_parity
from mmdora.families import family_of
from mmdora.files import write_whole
from mmdora.models.base import format_of_files
from mmdora.models.dtypes import DtypeName
from mmdora.models.load import load, load_processor
from mmdora.models.locate import RUN_CONFIG, Location, locate
from mmdora.models.memory import check_memory, free_memory, shown
from mmdora.outputs.folder import check_new_folder
from mmdora.records.row import Row

__all__ = ["Parity", "TensorParity", "export"]

SHARE = 8
"""A model fits, and its logits are compared, if it takes at most one part in this many of the available memory."""


def export(
    source: Path | str,
    out: Path | str,
    *,
    dtype: DtypeName | None = None,
    rows: Sequence[Row] | None = None,
    scores: Mapping[str, Any] | None = None,
    parity: Literal["logits", "tensors"] | None = None,
    requantize: bool = False,
    say: Callable[[str], Any] = print,
) -> Parity | TensorParity:
    """Write `source`, adapters merged, as an ordinary checkpoint to `out`.

    Merging from disk needs memory for some rows of one tensor. It wants safetensors of which transformers takes every
    tensor as it is; otherwise the model is loaded in fp32 and merged, and `say` gets the reason. Both ways write the
    same tensors, bit for bit; from disk they stay in as many files as the base has.

    An adapter that was trained on a quantised base is merged, in memory, into the dequantised weights, and nothing that
    is written is quantised. Merged into full-precision weights it would be another model; `say` gets how far that one
    and the written one are from what was trained (docs/quantised.md).

    Args:
        source: run folder, adapter folder, or a plain checkpoint (folder, hub id, bundled name).
        out: a new or empty folder. It is written beside its final place, and renamed when all checks have passed.
        dtype: dtype of the written weights; by default the base's. They are merged in fp32 and rounded once.
        rows: rows to compare logits on (`read_records`); by default some of the run's data, or drawn pictures.
        scores: name -> number (or text) for the model card.
        parity: "logits" loads the unmerged and then the written model, in fp32, and compares what they say;
            "tensors" loads no model and compares rows of every written tensor with the equations in float64.
            Default: logits if `rows` are given or the model fits, that is, takes in fp32 at most an eighth of the
            available memory; else tensors. What was merged in memory is always compared by logits.
        requantize: quantise the merged weights again, as the base was for training, and write that; `say` gets what it
            lost.
        say: receives the lines meant for a person: how it is merged and compared, and why.

    Raises:
        MmdoraError: if `out` is not empty, the disk is full, or the parity bounds do not hold; or if `requantize` is
            asked for and the base was not quantised.
    """
    out = Path(out)
    check_new_folder(out)
    location = locate(source)
    if requantize and location.quantize is None:
        raise MmdoraError(f"{source}: --requantize: this was not trained on a quantised base; leave it out")
    with beside(out) as folder:
        job = _begin(location, dtype, rows, parity, say)
        with writing(out, job.merged.size):
            measured = job.write(folder, say)
            if location.quantize is not None and isinstance(job.measure, LogitCheck):
                tell(location, folder, job.measure.asked, say, requantize=requantize)
            facts = job.facts(out.name, dict(scores or {}), measured)
            facts.write(folder)
            family = family_of(load_processor(location.base, template=location.template))
            load_it = snippet(out.name, folder, family)
            write_whole(folder / "README.md", card(facts, load_it, sees=family.sees))
            readable(folder)
    return measured


@dataclass(frozen=True)
class _Job:
    """What an export writes, and how the result is compared.

    Attributes:
        base: folder of the base.
        config: of the run; None if the run is not known.
        merged: base and adapter, merged when they are written.
        measure: function of the written folder.
    """

    location: Location
    base: Path
    config: RunConfig | None
    dtype: DtypeName
    merged: DiskMerge | MergedModel
    measure: LogitCheck | Callable[[Path], Parity | TensorParity]

    def write(self, folder: Path, say: Callable[[str], Any]) -> Parity | TensorParity:
        """Write the checkpoint and read it back.

        Raises:
            MmdoraError: it is not what was trained.
        """
        begun = time.monotonic()
        self.merged.write(folder)
        say(f"wrote {shown(self.merged.size)} in {time.monotonic() - begun:.1f} s")
        complete(folder, self.base, self.location)
        measured = self.measure.compare(folder) if isinstance(self.measure, LogitCheck) else self.measure(folder)
        measured.check()
        return measured

    def facts(self, name: str, scores: dict[str, Any], measured: Parity | TensorParity) -> ExportFacts:
        """The facts of the written checkpoint."""
        return ExportFacts(
            name=name,
            base=shown_base(self.location.base),
            licence=licence_of(self.base),
            dtype=self.dtype,
            plan=self.merged.plan,
            run=run_facts(self.config),
            image_tokens=token_facts(self.location.image_tokens),
            scores=scores,
            parity=parity_facts(measured),
            versions=versions(),
            lineage=lineage_of(self.base),
        )


def _begin(
    location: Location,
    dtype: DtypeName | None,
    rows: Sequence[Row] | None,
    parity: Literal["logits", "tensors"] | None,
    say: Callable[[str], Any],
) -> _Job:
    """Open the base, by its files or as a model, and what the result will be compared with."""
    base = base_folder(location.base)
    if location.adapter is not None and (base / RECORD).is_file():
        say(f"the base is pruned ({RECORD}): an adapter is dense, so the weights that it changes are sparse no longer")
    config = load_config(location.run / RUN_CONFIG) if location.run else None
    dtype = dtype or dtype_of(base)
    disk, model = None if location.quantize else _from_disk(base, location.adapter, dtype, say), None
    if location.quantize is not None:
        say(f"merging in memory: it was trained on {location.quantize.type} weights, which are dequantised first")
    if disk is None or _by_logits(disk, "logits" if rows is not None else parity, say):
        model, processor = _trained(location, disk)
        asked = prompts(config, rows, sees=family_of(processor).sees)
        trained = disk or TrainedModel(model, location.adapter)
        measure = LogitCheck(model, processor, *asked, trained, dtype)
    else:
        measure = partial(tensor_parity, disk)
    return _Job(location, base, config, dtype, disk or MergedModel(model, base, dtype), measure)


def _trained(location: Location, disk: DiskMerge | None) -> tuple[Any, Any]:
    """The unmerged model in fp32, and its processor. What a merge from disk has read and checked is not read again."""
    if disk is not None:
        check_memory(location.base, disk.base.model, "fp32", instead="--parity tensors, which loads no model")
    if location.quantize is not None or format_of_files(location.base) is not None:
        return dequantized_model(location)
    if disk is None or disk.plan is None:
        return load(location)
    model, processor = load(replace(location, adapter=None))
    apply(model, disk.plan)
    fill(model, disk.plan, disk.adapter)
    return model, processor


def _from_disk(base: Path, adapter: Path | None, dtype: DtypeName, say: Callable[[str], Any]) -> DiskMerge | None:
    try:
        disk = DiskMerge(base, adapter, dtype)
    except UnsureError as reason:
        say(f"merging in memory, not from disk: {reason}")
        return None
    say(f"merging from disk: {disk}")
    return disk


def _by_logits(disk: DiskMerge, asked: str | None, say: Callable[[str], Any]) -> bool:
    need, free = 4 * disk.elements, free_memory()
    fits = need <= free / SHARE
    logits = fits if asked is None else asked == "logits"
    share = f"{'at most' if fits else 'more than'} 1/{SHARE} of the {shown(free)} of memory available"
    what = "logits" if logits else "tensors, not logits"
    say(f"comparing {what}{', as asked' if asked else ''}: the model in fp32 takes {shown(need)}, {share}")
    return logits
