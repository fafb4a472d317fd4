"""Section `adapt`: what is adapted, per modality."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictInt, model_validator
from pydantic.dataclasses import dataclass

from mmdora.config.validate import validate
from mmdora.config.values import Number, Positive, Rate, Share, strict

MODALITIES = ("vision", "projector", "language")
METHODS = ("none", "lora", "dora", "magnitude", "full")
LOW_RANK = ("lora", "dora")
MAX_RANK = 2**16
"""More than the width of any model: a rank above it is a slip of the pen."""
AUTO = "auto"
BUDGET = re.compile(r"(?P<number>\d+(\.\d+)?)(%|MB)")
CALIBRATION_ROWS = 32
"""Rows that automatic ranks are chosen by, where a config does not say. Each takes four forward and backward passes."""
DEFAULT_RANK = {"vision": 8, "projector": 8, "language": 16}
"""Ranks where a config names none. Towers are narrower than language models and change less."""

_DEFAULT_RANKS = ", ".join(f"{modality} {rank}" for modality, rank in DEFAULT_RANK.items())

Rank = Annotated[StrictInt, Field(ge=1, le=MAX_RANK)]
# A field cannot be called `from` in Python, so that key has an alias, and `dataclasses.replace` gives the field's name.
_strict_by_alias = ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)


@dataclass(frozen=True, kw_only=True, config=_strict_by_alias)
class Modality:
    """How one modality of the model is adapted."""

    method: Annotated[Literal["none", "lora", "dora", "magnitude", "full"], Field(description="none: frozen")] = "none"
    rank: Annotated[Rank | None, Field(description=f"r of B A; default {_DEFAULT_RANKS}")] = None
    alpha: Annotated[
        Number | None, Field(gt=0, le=1e6, allow_inf_nan=False, description="scaling is alpha / rank; default 2 * rank")
    ] = None
    dropout: Annotated[Share, Field(description="on the input of the low-rank branch; embeddings have none")] = 0.0
    dropout_mode: Annotated[
        Literal["branch", "reference"],
        Field(description="reference: as in PEFT's DoRA, also on the scaled base output, a second base product"),
    ] = "branch"
    rslora: Annotated[StrictBool, Field(description="scaling alpha / sqrt(rank)")] = False
    start: Annotated[
        Path | None,
        Field(
            alias="from",
            description="a run or adapter, LoRA or DoRA of this rank on these targets, to go on with; where a LoRA "
            "goes on as dora, the magnitudes begin so that its outputs stay as they are",
        ),
    ] = None
    targets: Annotated[
        tuple[str, ...],
        Field(description="roles (attention, mlp, experts, all), or names or glob patterns of any modules"),
    ] = ("all",)
    bias: Annotated[StrictBool, Field(description="its biases train too, those of norms among them")] = False
    norms: Annotated[StrictBool, Field(description="the weights of its norms train too")] = False
    lr: Annotated[Rate | None, Field(description="learning rate of this modality; default training.lr")] = None
    lora_plus_ratio: Annotated[
        Number | None,
        Field(gt=0, allow_inf_nan=False, description="learning rate of B over that of A (LoRA+: about 16); default 1"),
    ] = None
    magnitude_lr: Annotated[
        Rate | None, Field(description="learning rate of magnitudes; default lr of this modality")
    ] = None
    weight_decay: Annotated[Rate | None, Field(description="of this modality; default training.weight_decay")] = None
    magnitude_weight_decay: Annotated[Rate, Field(description="weight decay of magnitudes")] = 0.0

    def rank_of(self, modality: str) -> int:
        """The rank of B A for this modality; 0 where the method has no B A."""
        return (self.rank or DEFAULT_RANK[modality]) if self.method in LOW_RANK else 0

    @model_validator(mode="before")
    @classmethod
    def _one_target_is_a_list(cls, values: Any) -> Any:
        kwargs = getattr(values, "kwargs", values)
        if isinstance(kwargs, dict) and isinstance(kwargs.get("targets"), str):
            kwargs["targets"] = [kwargs["targets"]]
        return values

    @model_validator(mode="after")
    def _targets_given(self) -> Modality:
        if not self.targets:
            raise ValueError("targets is empty; leave it out for 'all', or use method: none")
        return self

    @model_validator(mode="after")
    def _starts_with_factors(self) -> Modality:
        if self.start is not None and self.method not in LOW_RANK:
            raise ValueError(f"from goes on with the A and B of an adapter, and method {self.method} has none")
        return self

    @model_validator(mode="after")
    def _not_twice(self) -> Modality:
        if self.method == "full" and (self.bias or self.norms):
            raise ValueError("method full trains biases and norms already; leave bias and norms out")
        return self


@dataclass(frozen=True, kw_only=True, config=strict)
class Gates:
    """A learnable gate on each component of every B A, which an L1 term pulls to zero."""

    l1: Annotated[
        Rate, Field(description="pull to zero per step, times the learning rate; a gate at 0 removes its component")
    ]
    lr: Annotated[Rate | None, Field(description="learning rate of gates; default lr of their modality")] = None


@dataclass(frozen=True, kw_only=True, config=strict)
class Adapt:
    """What is adapted, per modality."""

    vision: Modality = Modality()
    projector: Modality = Modality()
    language: Modality = Modality()
    parts: Annotated[
        dict[Literal["vision", "projector", "language"], tuple[str, ...]] | None,
        Field(description="module prefixes per modality, for a model whose parts cannot be found"),
    ] = None
    rank: Annotated[
        Literal["auto"] | None,
        Field(description="auto: spread budget over the ranks of all modules, by their gradients on some rows"),
    ] = None
    budget: Annotated[
        str | None, Field(description="of rank: auto, for all adapters: 2% of the base's parameters, or 1.5MB in fp32")
    ] = None
    # None is what a resume takes a missing key for, so the default stands in `calibrates_on`.
    calibration_rows: Annotated[
        Positive | None, Field(description=f"of rank: auto, rows to measure gradients on; default {CALIBRATION_ROWS}")
    ] = None
    gates: Annotated[Gates | None, Field(description="learnable gates on the components of B A, with an L1 term")] = (
        None
    )

    @property
    def calibrates_on(self) -> int:
        """The number of rows that automatic ranks are chosen by."""
        return self.calibration_rows or CALIBRATION_ROWS

    @model_validator(mode="after")
    def _budget_is_of_automatic_ranks(self) -> Adapt:
        if self.rank is None:
            if key := next((key for key in ("budget", "calibration_rows") if getattr(self, key) is not None), None):
                raise ValueError(f"{key} is for rank: auto; set that, or leave it out")
            return self
        form = None if self.budget is None else BUDGET.fullmatch(self.budget)
        if form is None or not float(form["number"]):
            raise ValueError(
                f"rank: auto needs a budget such as 2% (of the base's parameters) or 1.5MB; found {self.budget!r}"
            )
        low_rank = {name for name in MODALITIES if getattr(self, name).method in LOW_RANK}
        if not low_rank:
            raise ValueError("rank: auto spreads ranks over modalities of method lora or dora, and there is none")
        if begun := sorted(name for name in MODALITIES if getattr(self, name).start is not None):
            raise ValueError(f"{begun[0]}.from has ranks of its own beside rank: auto; leave one out")
        if given := sorted(name for name in low_rank if getattr(self, name).rank is not None):
            raise ValueError(f"{given[0]}.rank is set beside rank: auto; leave one out")
        return self


def as_modalities(adapt: Adapt | Mapping[str, Any]) -> dict[str, Modality]:
    """The `adapt` section, from a config or from a plain dict, as one `Modality` per name."""
    if not isinstance(adapt, Adapt):
        adapt = validate(Adapt, dict(adapt), where=lambda key: "adapt")
    return {name: getattr(adapt, name) for name in MODALITIES}
