"""Keeps several adapters on one base in memory, and switches between them without merging or copying."""

from __future__ import annotations

from typing import Any

from mmdora.adapt.strength import Strength
from mmdora.adapt.switch import adapters_of, use
from mmdora.adapter_files.adapters import load_adapter
from mmdora.config import ImageTokens
from mmdora.errors import MmdoraError
from mmdora.models.locate import Location


class SharedBase:
    """A base that wears one of several adapters at a time. `wear` copies nothing and takes microseconds per module.

    Two threads must not use it at the same time.
    """

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self._strengths: dict[str, Strength] = {}

    def add(self, location: Location) -> str:
        """Read an adapter of this base; gives the name by which `wear` knows it. The base wears none afterwards.

        Raises:
            MmdoraError: in the cases of `load_adapter`; or if it has a budget of image tokens or a chat template, or is
                no adapter at all.
        """
        folder = location.adapter
        if folder is None:
            raise MmdoraError(f"{location.name}: no adapter here")
        if location.image_tokens != ImageTokens():
            raise MmdoraError(f"{folder}: has its own number of image tokens; load it without --shared-base")
        if location.template is not None:
            raise MmdoraError(f"{folder}: has its own chat template; load it without --shared-base")
        if (name := str(folder)) not in adapters_of(self.model):
            load_adapter(self.model, folder, name=name)
        self.wear(None)
        self._strengths.setdefault(name, Strength(self.model, adapters_of(self.model)[name]))
        return name

    def wear(self, adapter: str | None, strength: float = 1.0) -> None:
        """Replace the adapter that is worn by this one, or by none.

        Args:
            strength: how much of the adapter acts, from 0 (the base) to 1 and beyond; see `adapt.strength`.
        """
        if adapter is not None and self._strengths[adapter].now != strength:
            use(self.model, None)
            self._strengths[adapter].set(strength)
        use(self.model, adapter)
