"""The order of rows: every row once, a function of seed and epoch, like rows together."""

import tracemalloc

import numpy as np
import pytest

from mmdora.batches.sampler import WINDOW, GroupedSampler

ROWS, BATCH = 1003, 8


@pytest.fixture
def sampler():
    random = np.random.default_rng(0)
    return GroupedSampler(ROWS, BATCH, 3, random.integers(5, 500, ROWS), random.random(ROWS) < 0.7)


def test_every_row_once_in_an_order_of_seed_and_epoch(sampler):
    first = list(sampler)
    assert sorted(first) == list(range(ROWS)) and first == list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first and sorted(sampler) == list(range(ROWS))
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(GroupedSampler(ROWS, BATCH, 4, sampler.lengths, sampler.has_image)) != first


def test_batches_are_of_one_modality_and_like_length(sampler):
    order = sampler.order()
    batches = order[: ROWS // BATCH * BATCH].reshape(-1, BATCH)
    modalities = sampler.has_image[batches]
    pure = (modalities.all(1) | ~modalities.any(1)).mean()
    assert pure > 0.95  # the rest that fills no batch stands at the end
    spread = sampler.lengths[batches].max(1) - sampler.lengths[batches].min(1)
    random_spread = sampler.lengths[np.random.default_rng(1).permutation(ROWS)[: len(batches) * BATCH]].reshape(
        -1, BATCH
    )
    assert spread.mean() < 0.2 * (random_spread.max(1) - random_spread.min(1)).mean()


def test_without_lengths_it_is_a_plain_shuffle():
    sampler = GroupedSampler(10, 4, 0, None, np.ones(10, dtype=bool))
    assert sorted(sampler) == list(range(10)) and list(sampler) != list(range(10))


def plain_order(rows, batch, seed, epoch, lengths, has_image):
    """The order with nothing but lists: runs that were stopped before go on in it."""
    random = np.random.default_rng((seed, epoch))
    shuffled, whole, rest = random.permutation(rows).tolist(), [], []
    for modality in (True, False):
        mine = [row for row in shuffled if has_image[row] == modality]
        for start in range(0, len(mine), batch * WINDOW):
            window = sorted(mine[start : start + batch * WINDOW], key=lambda row: lengths[row])
            full = len(window) // batch * batch
            whole += [window[i : i + batch] for i in range(0, full, batch)]
            rest += window[full:]
    return [row for i in random.permutation(len(whole)) for row in whole[i]] + rest


@pytest.mark.parametrize(("rows", "batch"), [(0, 2), (1, 8), (23, 2), (ROWS, BATCH), (ROWS, 1), (700, 64)])
@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_the_order_is_what_it_always_was(rows, batch, share):
    random = np.random.default_rng(rows)
    lengths, has_image = random.integers(5, 50, rows, dtype=np.int32), random.random(rows) < share
    sampler = GroupedSampler(rows, batch, 7, lengths, has_image)
    sampler.set_epoch(3)
    order = list(sampler)
    assert order == plain_order(rows, batch, 7, 3, lengths, has_image)
    assert all(type(row) is int for row in order)


@pytest.mark.parametrize("grouped", [True, False])
def test_the_order_is_no_list_of_objects(grouped):
    rows = 200_000
    random = np.random.default_rng(0)
    lengths = random.integers(5, 500, rows, dtype=np.int32) if grouped else None
    sampler = GroupedSampler(rows, BATCH, 0, lengths, random.random(rows) < 0.7)
    next(iter(sampler))
    tracemalloc.start()
    try:
        order = iter(sampler)
        next(order)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 10 * rows and peak < 60 * rows  # 8 bytes a row; a list of integers takes 36
