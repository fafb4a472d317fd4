"""Merges an adapter in memory, where the files of the base do not allow it tensor by tensor (`merge_disk`)."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from mmdora.adapt.inject import merge, plan_of
from mmdora.export.layout import save_checkpoint
from mmdora.models.dtypes import DTYPES, DtypeName
from mmdora.models.load import no_bars


class MergedModel:
    """The merge in memory, with the same methods as `DiskMerge`."""

    def __init__(self, model: Any, base: Path, dtype: DtypeName):
        self.plan = plan_of(model)
        self._base = base
        self._model: Any = (merge(model) if self.plan else model).to(DTYPES[dtype])
        self.size = sum(parameter.numel() * parameter.element_size() for parameter in self._model.parameters())

    def write(self, folder: Path) -> None:
        """Write config and weights, and free the model."""
        if (self._base / "generation_config.json").is_file():
            # The base's own file is copied, because transformers refuses to write some that it can read (vicuna's).
            self._model.generation_config = GenerationConfig()
        with no_bars():
            save_checkpoint(self._model, folder)
        self._model = None
        gc.collect()
