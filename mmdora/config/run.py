"""All sections: one training run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from mmdora.config.adapt import Adapt
from mmdora.config.data import Data
from mmdora.config.model import Model, Quantize
from mmdora.config.training import Training
from mmdora.config.values import strict


@dataclass(frozen=True, kw_only=True, config=strict)
class RunConfig:
    """One training run."""

    model: Model = Model()
    adapt: Adapt = Adapt()
    data: Data = Data()
    training: Training = Training()

    @model_validator(mode="after")
    def _cached_tower_is_frozen(self) -> RunConfig:
        vision = self.adapt.vision
        trains = f"method {vision.method}" if vision.method != "none" else ""
        trains = trains or ("bias" if vision.bias else "norms" if vision.norms else "")
        if self.data.feature_cache is not None and trains:
            raise ValueError(
                f"data.feature_cache keeps what a frozen tower gives, and adapt.vision trains it ({trains}); "
                "leave one out"
            )
        if self.data.feature_cache is not None and self.data.stream:
            raise ValueError("data.feature_cache looks at all images before the first step, which data.stream cannot")
        return self

    @model_validator(mode="after")
    def _stream_has_no_end(self) -> RunConfig:
        if self.data.stream and self.training.steps is None:
            raise ValueError("data.stream needs training.steps: a stream has no length")
        if self.data.stream and self.training.find_batch_size:
            raise ValueError("training.find_batch_size reads rows again, which data.stream cannot; leave one out")
        return self

    @model_validator(mode="after")
    def _autocast_knows_the_base(self) -> RunConfig:
        if self.model.dtype == "fp16" and self.training.precision == "bf16":
            raise ValueError(
                "training.precision bf16 cannot compute with a base in model.dtype fp16, because torch's autocast does "
                "not mix the two; set model.dtype: bf16, or training.precision: fp32"
            )
        return self

    @model_validator(mode="after")
    def _packed_weights_are_frozen(self) -> RunConfig:
        for modality in self.model.quantize.only if self.model.quantize is not None else ():
            if getattr(self.adapt, modality).method == "full":
                raise ValueError(
                    f"model.quantize.only names {modality}, and adapt.{modality}.method full trains its weights, which "
                    "packed ones cannot be; leave one out"
                )
        return self

    @property
    def quantize(self) -> Quantize | None:
        """`model.quantize` with the dtype to compute in; None if the base is not quantised while it is loaded."""
        own = self.model.quantize
        if own is None or own.compute is not None:
            return own
        return replace(own, compute="bf16" if self.training.precision == "bf16" else self.model.dtype)

    @property
    def base(self) -> str:
        """The name of the base: a composed one lies in the run folder."""
        return self.model.base if self.model.compose is None else str(self.training.output / "base")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for YAML or JSON."""
        return TypeAdapter(RunConfig).dump_python(self, mode="json")

    def save(self, path: Path) -> None:
        """Write it as YAML, with the run folder as an absolute path."""
        tree = self.to_dict()
        tree["training"]["output"] = str(self.training.output.absolute())
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
