"""Packing: which rows share one packed row, and how packed rows become a batch.

Rows within a packed row do not attend to each other. Their positions start again from 0, and without an attention mask
the mask code of transformers takes each such restart for a border. Images stay in the order of their rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from mmdora.batches.fit import Rows
from mmdora.errors import MmdoraError
from mmdora.families import IGNORE, Family
from mmdora.records.row import Row

PER_TOKEN = {"input_ids": 0, "labels": IGNORE, "token_type_ids": 0, "mm_token_type_ids": 0}
"""Name of each tensor [rows, tokens] of a batch -> the value that it holds in padding."""


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """[rows] int32: the number of the packed row that each row goes to, by best-fit decreasing.

    Each row goes where it leaves the least room. The sizes of the bins depend on the lengths alone.

    Args:
        lengths: [rows] tokens of each row, sorted with the longest first; none is over `capacity`.
    """
    bins = np.empty(len(lengths), dtype=np.int32)
    open_bins: list[list[int]] = [[] for _ in range(capacity + 1)]  # open_bins[n] holds the bins with room for n tokens
    rooms = 0  # Bit n is set if a bin with room for n tokens is open, so that one shift finds the best bin.
    count = 0
    for row, length in enumerate(lengths.tolist()):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = open_bins[room].pop()
            if not open_bins[room]:
                rooms ^= 1 << room
        else:
            room, chosen, count = capacity, count, count + 1
        bins[row] = chosen
        if left := room - length:
            open_bins[left].append(chosen)
            rooms |= 1 << left
    return bins


@dataclass(frozen=True)
class Packs(Dataset[list[Row]]):
    """A training set of packed rows: each index gives the several rows that share one packed row.

    The lengths and the seed alone decide which rows share a packed row, so it is the same in every epoch.

    Args:
        capacity: the most tokens of a packed row, images included.

    Raises:
        MmdoraError: if no two rows fit together.
    """

    rows: Rows
    capacity: int
    seed: int
    members: np.ndarray = field(init=False)  # [rows] int64: indices of rows, one packed row after another
    bounds: np.ndarray = field(init=False)  # [packed rows + 1] int64: where each packed row begins in `members`
    lengths: np.ndarray = field(init=False)  # [packed rows] int64: tokens of each packed row
    has_image: np.ndarray = field(init=False)  # [packed rows] bool

    def __post_init__(self) -> None:
        # The sort below is stable, so shuffling first lets chance decide which rows of equal length meet.
        shuffled = np.random.default_rng(self.seed).permutation(len(self.rows))
        longest_first = shuffled[np.argsort(-self.rows.lengths[shuffled], kind="stable")]
        bins = best_fit(self.rows.lengths[longest_first], self.capacity)
        members = longest_first[np.argsort(bins, kind="stable")]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(bins))])
        if len(bounds) - 1 == len(members):
            raise MmdoraError(
                f"{self.rows.records.path}: no two rows fit into data.max_length {self.capacity} together; raise it, "
                "or leave out data.packing"
            )
        layout = {
            "members": members,
            "bounds": bounds,
            "lengths": np.add.reduceat(self.rows.lengths[members].astype(np.int64), bounds[:-1]),
            "has_image": np.logical_or.reduceat(self.rows.has_image[members], bounds[:-1]),
        }
        for name, value in layout.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> list[Row]:
        """The rows of a packed row. The index ~i (negative) gives those of i with all labels masked, as in `Rows`."""
        pack = ~index if index < 0 else index
        members = self.members[self.bounds[pack] : self.bounds[pack + 1]]
        return [self.rows[~int(row) if index < 0 else int(row)] for row in members]


class PackedCollator:
    """Makes batches of packed rows. Rows that are not packed (evaluation) become the family's ordinary batch.

    Args:
        model: the model to train; if it has its own rule of positions, that is used, else they are counted from 0.

    Raises:
        MmdoraError: if rows of this family cannot share a packed row.
    """

    def __init__(self, family: Family, model: Any):
        if problem := family.packing_problem():
            raise MmdoraError(f"data.packing: this model cannot train on packed rows: {problem}; leave it out")
        self.family, self.rope = family, family.positions(model)
        # Flash attention respects the borders only if the batch has a single row.
        self.flat = "flash" in (model.config.get_text_config()._attn_implementation or "")

    def __call__(self, items: list[Any]) -> dict[str, Any]:
        """Turn packed rows into `input_ids`, `labels` [B, T], `position_ids` [B, T] or [4, B, T], and all images.

        The batch has no attention mask: the padding at the end of a packed row gets positions from 0 like one more
        row, and no labels. `samples` is the number of rows. With flash attention B is 1 and there is no padding.

        Raises:
            MmdoraError: in the cases of `Family.batch`.
        """
        if isinstance(items[0], dict):
            return dict(self.family.batch(items))
        batch: dict[str, Any] = dict(self.family.batch([row for pack in items for row in pack]))
        kept = batch["attention_mask"].bool()
        batch["labels"][:, 0] = IGNORE  # The last token of a row must not learn to predict the next row's first.
        positions = torch.arange(kept.shape[1]).expand(1, *kept.shape)
        if self.rope is not None:
            positions = torch.cat([positions, self.rope(batch)])
        del batch["attention_mask"]
        ends = np.cumsum([len(pack) for pack in items])
        lengths = [int(part.sum()) for part in kept.tensor_split(ends[:-1].tolist())]
        if self.flat:
            lengths = [sum(lengths)]
        for key, fill in PER_TOKEN.items():
            if key in batch:
                batch[key] = pad_sequence(batch[key][kept].split(lengths), batch_first=True, padding_value=fill)
        width = max(lengths)
        filled = [
            torch.cat([part, torch.arange(width - part.shape[1]).expand(len(part), -1)], 1)
            for part in positions[:, kept].split(lengths, 1)
        ]
        stacked = torch.stack(filled, 1)
        batch["position_ids"] = stacked if self.rope is not None else stacked[0]
        # With a cache, transformers would not look for borders in the positions.
        return batch | {"use_cache": False, "samples": int(ends[-1])}
