"""The statistics against what is known: analytic widths, planted differences, Holm's own example."""

from __future__ import annotations

import numpy as np
import pytest

from mmdora.study.statistics import difference, holm, smallest_visible


def drawn(seeds: int, questions: int, *, gain: float, seed_spread: float, seed: int) -> np.ndarray:
    """[seeds, questions] differences of right answers: about `gain`, with a departure of each seed."""
    random = np.random.default_rng(seed)
    middle = gain + random.normal(0, seed_spread, seeds)
    return np.clip(random.normal(middle[:, None], 0.45, (seeds, questions)), -1, 1)


def covered(seeds: int, seed_spread: float) -> float:
    """How often the interval holds the true difference, which is 0, in draws of it."""
    hits = 0
    for seed in range(200):
        each = drawn(seeds, 100, gain=0.0, seed_spread=seed_spread, seed=seed)
        low, high = difference([(each, np.arange(100))], seed=seed, resamples=400).interval
        hits += low <= 0 <= high
    return hits / 200


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Without the seeds' part, or without its stretching, five seeds with this spread give less than 0.85."""
    assert covered(5, 0.1) >= 0.85


def test_one_seed_gives_the_interval_of_the_questions() -> None:
    each = np.where(np.arange(400) % 4 == 0, 1.0, 0.0)[None]
    found = difference([(each, np.arange(400))])
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert found.value == 0.25 and found.seeds == 1
    assert found.interval == pytest.approx((0.25 - half, 0.25 + half), abs=0.006)


def test_questions_about_one_picture_are_drawn_together() -> None:
    each = np.repeat(np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 50), 8)[None]
    alone = difference([(each, np.arange(400))]).interval
    together = difference([(each, np.repeat(np.arange(50), 8))]).interval
    assert together[1] - together[0] == pytest.approx(np.sqrt(8) * (alone[1] - alone[0]), rel=0.15)


def test_more_tasks_narrow_the_mean_and_a_planted_gain_is_seen() -> None:
    tasks = [(drawn(3, 200, gain=0.08, seed_spread=0.01, seed=seed), np.arange(200)) for seed in range(6)]
    one, every = difference(tasks[:1]), difference(tasks)
    assert every.interval[1] - every.interval[0] < 0.6 * (one.interval[1] - one.interval[0])
    assert every.seen and every.p < 0.01 and every.value == pytest.approx(0.08, abs=0.03)
    nothing = difference([(each - each.mean(), units) for each, units in tasks])
    assert not nothing.seen and nothing.p > 0.9


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )


def test_what_is_visible_is_seen_in_four_of_five_draws() -> None:
    gain = smallest_visible(tasks=1, seeds=4, questions=300, differing=0.2, seed_spread=0.02)
    random, seen = np.random.default_rng(0), 0
    for seed in range(100):
        better = random.random(300) < (0.2 + gain) / 2
        worse = ~better & (random.random(300) < (0.2 - gain) / 2 / (1 - (0.2 + gain) / 2))
        each = (better.astype(float) - worse)[None] + random.normal(0, 0.02 * np.sqrt(2), 4)[:, None]
        seen += difference([(each, np.arange(300))], seed=seed, resamples=400).seen
    assert 0.68 <= seen / 100 <= 0.95
