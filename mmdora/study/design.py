"""The design of a study, as its YAML file says it: which arms are compared, on what, at which rates and seeds.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, StrictInt, model_validator
from pydantic.dataclasses import dataclass

from mmdora.config import MODALITIES, Modality, validate
from mmdora.config.values import Number, Positive, Share, strict
from mmdora.config.yaml_files import read_yaml
from mmdora.errors import MmdoraError
from mmdora.study.tasks import TASKS

METHODS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"method": "lora"},
    "dora": {"method": "dora"},
    "rslora": {"method": "lora", "rslora": True},
    "magnitude": {"method": "magnitude"},
    "full": {"method": "full"},
}
"""Name of a method in a grid -> what it means for every modality of its place."""
TITLES = {"lora": "LoRA", "dora": "DoRA", "rslora": "rsLoRA", "magnitude": "magnitude", "full": "full"}
ALL = "all"
"""The place that stands for every modality."""

Place = Literal["all", "vision", "projector", "language"]
Peak = Annotated[Number, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True, config=strict)
class Rates:
    """A log grid of learning rates, the same for every arm."""

    low: Annotated[Peak, Field(description="the lowest rate")]
    high: Annotated[Peak, Field(description="the highest rate")]
    count: Annotated[Positive, Field(le=50, description="how many rates, equally far apart on a log scale")]

    @model_validator(mode="after")
    def _in_order(self) -> Rates:
        if (self.low < self.high) != (self.count > 1):
            raise ValueError(f"{self.count} rates from {self.low:g} to {self.high:g} are no grid")
        return self

    @property
    def values(self) -> tuple[float, ...]:
        """The rates in rising order, rounded to two significant digits, as people write them."""
        return tuple(float(f"{rate:.1e}") for rate in np.geomspace(self.low, self.high, self.count))


@dataclass(frozen=True, kw_only=True, config=strict)
class Grid:
    """Arms as a product of methods, ranks and places."""

    methods: tuple[Literal["lora", "dora", "rslora", "magnitude", "full"], ...]
    ranks: tuple[Positive, ...] = (8,)
    places: tuple[str, ...] = (ALL,)

    def arms(self) -> dict[str, dict[str, Any]]:
        """Name of an arm, such as "DoRA r8" or "DoRA r8 vision", -> its modalities."""
        arms: dict[str, dict[str, Any]] = {}
        for method in self.methods:
            ranks = self.ranks if METHODS[method]["method"] in ("lora", "dora") else (None,)
            for rank in ranks:
                for place in self.places:
                    words = [TITLES[method], f"r{rank}" if rank else "", place if self.places != (ALL,) else ""]
                    how = dict(METHODS[method]) | ({"rank": rank} if rank else {})
                    arms[" ".join(word for word in words if word)] = dict.fromkeys(place.split("+"), how)
        return arms


@dataclass(frozen=True, kw_only=True, config=strict)
class Expected:
    """What is assumed beforehand, from which the smallest difference that the design can see is computed."""

    differing: Annotated[Share, Field(gt=0, description="share of questions that two arms answer differently")]
    seed_spread: Annotated[Share, Field(description="standard deviation of an arm's score over seeds")]


@dataclass(frozen=True, kw_only=True, config=strict)
class Study:
    """A grid of base x task x arm x learning rate x seed, and the pairs of arms that are compared."""

    title: str
    question: Annotated[str, Field(description="what the study asks, for its report")]
    bases: tuple[str, ...] = ("tiny-llava",)
    tasks: Annotated[tuple[str, ...], Field(description="tasks of mmdora.study.tasks")]
    grid: Annotated[Grid | None, Field(description="arms as a product of methods, ranks and places")] = None
    arms: Annotated[
        dict[str, dict[Place, Modality]], Field(description="more arms: name: {all: {method: dora, rank: 8}}")
    ] = Field(default_factory=dict)
    compare: Annotated[tuple[tuple[str, str], ...], Field(description="pairs of arms; the second minus the first")]
    rates: Rates
    shared_rate: Annotated[Peak | None, Field(description="a rate of the grid that all arms get, too")] = None
    seeds: tuple[Annotated[StrictInt, Field(ge=0, lt=2**31)], ...] = (0, 1, 2)
    search_seeds: Annotated[
        Positive, Field(description="so many of the seeds train at every rate; the others at the chosen rates only")
    ] = 1
    expected: Expected

    @model_validator(mode="after")
    def _fits(self) -> Study:
        known = self.all_arms
        for name in (name for pair in self.compare for name in pair):
            if name not in known:
                raise ValueError(f"compare: no arm {name!r}; there are {', '.join(known) or 'none'}")
        if not self.compare or not self.tasks or not self.bases:
            raise ValueError("name at least one base, one task and one pair in compare")
        if self.shared_rate is not None and self.shared_rate not in self.rates.values:
            raise ValueError(f"shared_rate {self.shared_rate:g} is none of the grid: {self.rates.values}")
        for key in ("seeds", "tasks", "bases"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key}: one stands twice")
        if self.search_seeds > len(self.seeds):
            raise ValueError(f"search_seeds {self.search_seeds} are more than the {len(self.seeds)} seeds")
        return self

    @property
    def all_arms(self) -> dict[str, dict[str, Modality]]:
        """Name of an arm -> modality -> how it is adapted; a modality that an arm does not name is frozen."""
        given = self.grid.arms() if self.grid is not None else {}
        arms = validate(dict[str, dict[Place, Modality]], given, lambda key: "grid")
        return {name: _by_modality(how) for name, how in {**arms, **self.arms}.items()}


def _by_modality(how: Mapping[Place, Modality]) -> dict[str, Modality]:
    given: dict[str, Modality] = dict.fromkeys(MODALITIES, how[ALL]) if ALL in how else {}
    return given | {place: own for place, own in how.items() if place != ALL}


def read_study(path: Path) -> Study:
    """Read the YAML file of a study.

    Raises:
        MmdoraError: naming the file, the key, and what was probably meant.
    """
    tree = read_yaml(path, "study")
    if not isinstance(tree, dict):
        raise MmdoraError(f"{path}: expected the keys of a study, found {type(tree).__name__}")
    study = validate(Study, tree, where=lambda key: str(path))
    missing = [task for task in study.tasks if task not in TASKS]
    if missing:
        raise MmdoraError(f"{path}: tasks: no task {missing[0]!r}; there are {', '.join(TASKS)}")
    return study
