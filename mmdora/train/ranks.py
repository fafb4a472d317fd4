"""Chooses the ranks of `adapt.rank: auto` on rows of the run, and keeps them in the run folder for a resume.

`ranks.json` holds the measured singular values beside the ranks, for `mmdora analyze` and for people. A run that goes
on from a checkpoint takes its ranks from there, because the parameters in the checkpoint have them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdora.adapt.budget import highest_ranks, spread
from mmdora.adapt.spectra import spectra
from mmdora.adapt.wanted import budget_of
from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.families import Family
from mmdora.files import read_json, write_json
from mmdora.train.processes import Processes

RANKS = "ranks.json"


@dataclass(frozen=True)
class Ranks:
    """The ranks that a budget was spread over.

    Attributes:
        budget: as in the config.
        rows: number of rows that gradients were measured on.
        modules: name -> {"modality", "rank", "parameters" of its adapter, "highest" rank it might have got, "values":
            the largest singular values of its mean gradient}, for every module that might have got a rank.
    """

    budget: str
    rows: int
    modules: Mapping[str, Mapping[str, Any]]

    @property
    def of_modules(self) -> dict[str, int]:
        return {name: module["rank"] for name, module in self.modules.items()}

    def write(self, folder: Path) -> None:
        write_json(folder / RANKS, vars(self))


def read_ranks(folder: Path) -> Ranks:
    """The ranks of a run.

    Raises:
        MmdoraError: `ranks.json` is missing or damaged.
    """
    values = read_json(folder / RANKS, "run's ranks")
    try:
        ranks = Ranks(**values)
        for module in ranks.modules.values():
            if type(module["rank"]) is not int or not all(isinstance(value, float) for value in module["values"]):
                raise TypeError(f"{module!r:.80}")
    except (KeyError, TypeError, AttributeError) as error:
        raise MmdoraError(f"{folder / RANKS}: damaged ({type(error).__name__}: {error!s:.200})") from None
    return ranks


def ranks_for(
    config: RunConfig, model: Any, family: Family, rows: Any, processes: Processes, checkpoint: Path | None
) -> Ranks | None:
    """The ranks of `adapt.rank: auto`; None without it. All processes call this together; the main one measures.

    Raises:
        MmdoraError: a checkpoint whose ranks are gone, or were chosen for another budget; nothing has a gradient.
    """
    if config.adapt.rank is None:
        return None
    if checkpoint is not None:
        return processes.main_makes(partial(_kept, config, checkpoint))
    return processes.main_makes(partial(_measured, config, model, family, rows, processes))


def check_ranks(config: RunConfig, *, sharded: bool) -> None:
    """Raise an MmdoraError if the ranks of `adapt.rank: auto` cannot be measured in such a run."""
    if config.adapt.rank is None:
        return
    if config.data.stream:
        raise MmdoraError(
            "adapt.rank: auto draws rows to measure on, which data.stream cannot; set ranks, or use files"
        )
    if sharded:
        raise MmdoraError(
            "adapt.rank: auto measures on one device, and FSDP and DeepSpeed are for models that fit on none; set ranks"
        )


def _kept(config: RunConfig, checkpoint: Path) -> Ranks:
    ranks = read_ranks(checkpoint.parent)
    if ranks.budget != config.adapt.budget:
        raise MmdoraError(
            f"adapt.budget {config.adapt.budget}: the ranks in {checkpoint} were chosen for {ranks.budget}; undo that, "
            "or start anew in another folder"
        )
    return ranks


def _measured(config: RunConfig, model: Any, family: Family, rows: Any, processes: Processes) -> Ranks:
    adapt, seed = config.adapt, config.training.seed
    claims, budget = budget_of(model, adapt)
    counts = highest_ranks(claims, budget)
    count = min(adapt.calibrates_on, len(rows))
    chosen = random.Random(seed).sample(range(len(rows)), count)
    model.to(processes.device)
    was_training = model.training
    with processes.accelerator.autocast():
        losses = partial(_losses, model.eval(), family, [rows[index] for index in chosen], processes.device)
        values = spectra(model, counts, losses, seed)
    model.train(was_training)
    claims = [replace(claim, highest=counts[claim.name], values=values[claim.name]) for claim in claims]
    ranks = spread(claims, budget)
    assert adapt.budget is not None
    modules = {
        claim.name: {
            "modality": claim.modality,
            "rank": ranks[claim.name],
            "parameters": claim.cost(ranks[claim.name]),
            "highest": claim.highest,
            "values": list(claim.values),
        }
        for claim in claims
    }
    return Ranks(adapt.budget, count, modules)


def _losses(model: Any, family: Family, rows: list[Any], device: torch.device) -> Iterator[Tensor]:
    """The loss of each row alone, which takes the least memory and gives each row the same weight."""
    for row in rows:
        batch = {key: value for key, value in family.batch([row]).items() if key != "samples"}
        batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        yield model(**batch).loss
