"""Kinds of values that sections share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, StrictInt


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number (YAML reads yes and on as true, no and off as false)")
    return value


Number = Annotated[float, BeforeValidator(_no_truth)]
Positive = Annotated[StrictInt, Field(ge=1)]
Rate = Annotated[Number, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[Number, Field(ge=0.0, lt=1.0)]

strict = ConfigDict(extra="forbid")
