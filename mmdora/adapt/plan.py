"""What is adapted and trained and why, as plain values and as text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mmdora.adapt.modality import ModelParts
from mmdora.config import MAX_RANK, METHODS, MODALITIES
from mmdora.layers import BY_NAME, DropoutMode, Method

WIDTH = 80
"""Most columns of the plan as text: the usual width of a terminal."""


@dataclass(frozen=True)
class Entry:
    """One adapted module; `parameters` counts what the adapter adds."""

    name: str
    modality: str
    method: Method
    rank: int
    alpha: float
    scaling: float
    dropout: float
    parameters: int
    kind: str = "linear"
    """The kind of layer: linear, conv, embedding, attention or experts."""
    dropout_mode: DropoutMode = "branch"
    because: str = ""
    """Why it was chosen, as in "role attention, of targets: all". Adapters of mmdora before 0.2 do not say."""

    @property
    def weight(self) -> str:
        """Name of the parameter that is adapted."""
        return BY_NAME[self.kind].parameter_name(self.name)


@dataclass(frozen=True)
class ModalityRow:
    """One modality of a plan, as a row of its table."""

    modality: str
    method: str
    modules: int
    rank: str
    trainable: int
    total: int

    @property
    def share(self) -> float:
        """The trainable share of the parameters of the modality; those of adapters count as parameters too."""
        return self.trainable / self.total if self.total else 0.0

    def counts(self) -> tuple[str, str, str]:
        """The number of trainable parameters, the number of all, and the share, as text."""
        return f"{self.trainable:,}", f"{self.total:,}", f"{self.share:.2%}"


@dataclass(frozen=True)
class Plan:
    """What is adapted and trained: the modules of `entries` get adapters, and the parameters named in `full` train."""

    parts: ModelParts
    entries: tuple[Entry, ...]
    full: tuple[str, ...]
    base_sizes: Mapping[str, int]
    """Parameters of the base per modality, and under "other"."""
    full_sizes: Mapping[str, int]
    """Parameters of the base that train in full, per modality, and under "other"."""
    notes: tuple[str, ...] = ()
    """Which modules were left out, and why."""
    fingerprint: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def has_magnitudes(self) -> bool:
        return any(entry.method != "lora" for entry in self.entries)

    @property
    def trainable(self) -> int:
        return sum(row.trainable for row in self.by_modality())

    @property
    def total(self) -> int:
        return sum(self.base_sizes.values()) + sum(entry.parameters for entry in self.entries)

    def by_modality(self) -> tuple[ModalityRow, ...]:
        rows = []
        for modality in MODALITIES:
            entries = [entry for entry in self.entries if entry.modality == modality]
            full = [name for name in self.full if self.parts.of(name) == modality]
            whole = self.full_sizes.get(modality, 0) == self.base_sizes.get(modality, 0)
            methods = sorted({entry.method for entry in entries})
            methods += ["full" if whole else f"{len(full)} tensors"] if full else []
            ranks = sorted({entry.rank for entry in entries if entry.rank})
            added = sum(entry.parameters for entry in entries)
            rows.append(
                ModalityRow(
                    modality=modality,
                    method="+".join(methods) or "none",
                    modules=len(entries) + len({name.rpartition(".")[0] for name in full}),
                    rank="-".join(str(rank) for rank in {ranks[0]: 0, ranks[-1]: 0}) if ranks else "",
                    trainable=added + self.full_sizes.get(modality, 0),
                    total=added + self.base_sizes.get(modality, 0),
                )
            )
        return tuple(rows)

    def __str__(self) -> str:
        """The table, the reasons and the notes."""
        return "\n".join([self.table(), *self.reasons(), *(f"note: {note}" for note in self.notes)])

    def reasons(self) -> list[str]:
        """Why modules are adapted: a paragraph for each reason, with how many modules it chose and their names."""
        chosen: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            if entry.because:
                chosen.setdefault((entry.modality, entry.because), []).append(entry)
        said = []
        for (modality, because), entries in chosen.items():
            leaves = dict.fromkeys(entry.name.rpartition(".")[2] for entry in entries)
            count = "1 module" if len(entries) == 1 else f"{len(entries)} modules"
            text = f"{modality}: {count} by {because} ({', '.join(leaves)})"
            said.append(textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False))
        return said

    def table(self) -> str:
        """Method, modules, ranks and parameters of each modality."""
        cells = [["modality", "method", "modules", "rank", "trainable", "parameters", "share"]]
        for row in self.by_modality():
            cells.append([row.modality, row.method, str(row.modules or ""), row.rank, *row.counts()])
        if other := self.base_sizes.get("other"):
            cells.append(["other", "none", "", "", *ModalityRow("other", "none", 0, "", 0, other).counts()])
        cells.append(["total", "", "", "", *ModalityRow("total", "", 0, "", self.trainable, self.total).counts()])
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        return cls(
            parts=ModelParts(**{kind: tuple(names) for kind, names in values["parts"].items()}),
            entries=tuple(map(_entry, values["entries"])),
            full=tuple(values["full"]),
            base_sizes=dict(values["base_sizes"]),
            full_sizes=dict(values["full_sizes"]),
            notes=tuple(values["notes"]),
            fingerprint=dict(values["fingerprint"]),
        )


def _entry(values: Mapping[str, Any]) -> Entry:
    """An entry from a file.

    Raises:
        ValueError, TypeError: a value of another kind, or out of range.
    """
    entry = Entry(**values)
    kinds = {"name": str, "modality": str, "method": str, "rank": int, "parameters": int, "kind": str, "because": str}
    numbers = {"alpha": entry.alpha, "scaling": entry.scaling, "dropout": entry.dropout}
    for key, kind in kinds.items():
        if type(getattr(entry, key)) is not kind:
            raise ValueError(f"{key} is {getattr(entry, key)!r:.80}, not of kind {kind.__name__}")
    for key, number in numbers.items():
        if type(number) not in (int, float) or not math.isfinite(number):
            raise ValueError(f"{key} is {number!r:.80}, not a finite number")
    if entry.kind not in BY_NAME:
        raise ValueError(f"{entry.name}: kind {entry.kind!r:.80}")
    if entry.method not in METHODS or not 0 <= entry.rank <= MAX_RANK or not 0 <= entry.dropout < 1:
        raise ValueError(f"{entry.name}: method {entry.method}, rank {entry.rank}, dropout {entry.dropout}")
    return entry
