"""The order of rows: every row once, a function of seed and epoch, like rows together."""

import numpy as np
import pytest

from mmdora.data.sampler import GroupedSampler

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
