"""Kinds of values that sections share."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StrictInt

Positive = Annotated[StrictInt, Field(ge=1)]
Rate = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]

strict = ConfigDict(extra="forbid")
