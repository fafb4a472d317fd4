"""Which rows share a packed row: all of them once, none too full, few bins, and the same every time."""

from types import SimpleNamespace

import numpy as np
import pytest

from mmdora.batches.packing import Packs, best_fit
from mmdora.errors import MmdoraError

CAPACITY = 2048


class Lengths:
    """What `Packs` asks of `Rows`."""

    records = SimpleNamespace(path="records.jsonl")

    def __init__(self, lengths, has_image=None):
        self.lengths = np.asarray(lengths, dtype=np.int32)
        self.has_image = np.zeros(len(lengths), bool) if has_image is None else has_image

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return {"id": index}


@pytest.fixture
def rows():
    random = np.random.default_rng(0)
    lengths = random.lognormal(6.3, 0.5, 5000).astype(int).clip(20, CAPACITY)
    return Lengths(lengths, random.random(5000) < 0.7)


def members(packs):
    return [[row["id"] for row in packs[index]] for index in range(len(packs))]


def test_every_row_once_and_none_over(rows):
    packs = Packs(rows, CAPACITY, 0)
    found = members(packs)
    assert sorted(row for pack in found for row in pack) == list(range(len(rows)))
    assert packs.lengths.tolist() == [rows.lengths[pack].sum() for pack in found] and packs.lengths.max() <= CAPACITY
    assert packs.has_image.tolist() == [rows.has_image[pack].any() for pack in found]
    assert packs.lengths.mean() > 0.98 * CAPACITY  # the last bin of so many is of no weight


def test_what_masks_a_row_masks_all_of_a_packed_row(rows):
    packs = Packs(rows, CAPACITY, 0)
    assert [row["id"] for row in packs[~3]] == [~row for row in members(packs)[3]]  # type: ignore[operator] (ids of these rows are numbers)


def test_a_function_of_the_seed(rows):
    first = Packs(rows, CAPACITY, 0)
    assert members(first) == members(Packs(rows, CAPACITY, 0)) != members(Packs(rows, CAPACITY, 1))
    assert len(first) == len(Packs(rows, CAPACITY, 1))


@pytest.mark.parametrize("seed", range(20))
def test_no_more_bins_than_proven(seed):
    """Best-fit decreasing takes at most 11/9 of the best number and one (Johnson 1974); the sum bounds that below."""
    random = np.random.default_rng(seed)
    lengths = np.sort(random.integers(1, 60, 80))[::-1]
    bins = best_fit(lengths, 60)
    loads = np.bincount(bins, weights=lengths)
    assert loads.max() <= 60 and len(loads) <= 11 / 9 * max(np.ceil(lengths.sum() / 60), (lengths > 30).sum()) + 1
    # no bin could have been saved by what any two of the emptiest hold
    emptiest = np.sort(loads)[:2]
    assert emptiest.sum() > 60


def test_a_small_case_by_hand():
    assert best_fit(np.array([7, 5, 5, 4, 3, 2, 2]), 10).tolist() == [0, 1, 1, 2, 0, 2, 2]


def test_rows_that_do_not_fit_together_are_said():
    with pytest.raises(MmdoraError, match="no two rows fit"):
        Packs(Lengths([60, 51, 55]), 100, 0)  # pyright: ignore


def test_as_many_rows_as_a_large_set_has_take_no_time():
    lengths = np.random.default_rng(0).lognormal(6.3, 0.5, 200_000).astype(int).clip(20, 4096)
    packs = Packs(Lengths(lengths), 4096, 0)  # pyright: ignore
    assert len(packs) < 1.01 * lengths.sum() / 4096 + 1
