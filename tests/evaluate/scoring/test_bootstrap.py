import math

import numpy as np
import pytest

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.bootstrap import DRAWS_AT_ONCE, Part, measure, ratio, resample
from mmdora.evaluate.scoring.parts import mean
from mmdora.evaluate.scoring.significance import BOOTSTRAP, MCNEMAR, compare


def test_resamples_have_the_mean_and_spread_of_theory():
    values = np.random.default_rng(1).random(50)
    error = values.std() / math.sqrt(50)
    drawn = resample(values[:, None], range(50), resamples=20_000)[:, 0] / 50
    assert drawn.mean() == pytest.approx(values.mean(), abs=1e-3)
    assert drawn.std() == pytest.approx(error, rel=0.02)
    interval = measure({"x": mean(values)}, range(50))["x"].interval
    assert interval == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error)


def test_whole_groups_are_drawn():
    values = np.random.default_rng(2).integers(0, 2, 40).astype(float)
    once = measure({"x": mean(values)}, range(40))["x"]
    # every row five times over tells no more than once
    often = measure({"x": mean(np.repeat(values, 5))}, np.repeat(np.arange(40), 5).tolist())["x"]
    assert often.interval == once.interval and often.n == 200
    apart = measure({"x": mean(np.repeat(values, 5))}, range(200))["x"]
    assert once.interval and apart.interval
    width, narrow = once.interval[1] - once.interval[0], apart.interval[1] - apart.interval[0]
    assert narrow == pytest.approx(width / math.sqrt(5), rel=0.1)


def test_chunks_change_nothing(monkeypatch):
    values = np.arange(12.0).reshape(6, 2)
    whole = resample(values, "aabbcd", resamples=50)
    monkeypatch.setattr("mmdora.evaluate.scoring.bootstrap.DRAWS_AT_ONCE", 4 * 7)
    assert DRAWS_AT_ONCE > 200 and (resample(values, "aabbcd", resamples=50) == whole).all()
    assert (resample(values, "aabbcd", resamples=50, seed=1) != whole).any()


def test_numbers_the_rows_do_not_determine_are_left_out():
    nothing = Part(np.zeros((3, 2)), lambda sums: ratio(sums[..., 0], sums[..., 1]), 0)
    rare = mean(np.ones(3), np.array([True, False, False]))  # absent from many resamples
    measured = measure({"nothing": nothing, "rare": rare}, range(3))
    assert list(measured) == ["rare"] and measured["rare"].interval == (1, 1)
    assert measure({"nothing": nothing}, range(3)) == {}


def exact(right: list[bool]) -> list[dict]:
    return [
        {"id": i, "answer": "a", "prediction": "a" if r else "b", "images": [f"{i // 2}.jpg"], "meta": {}}
        for i, r in enumerate(right)
    ]


def test_scores_of_0_and_1_are_compared_by_mcnemar():
    first, second = [True] * 2 + [False] * 10 + [True] * 5, [False] * 2 + [True] * 10 + [True] * 5
    found = compare("exact", exact(first), exact(second))
    assert found.difference == pytest.approx(8 / 17) and found.test == MCNEMAR
    assert found.p == pytest.approx(158 / 4096)  # 2 * (1 + 12 + 66) / 2**12
    low, high = found.interval
    assert low < found.difference < high
    back = compare("exact", exact(second), exact(first))
    assert (back.difference, back.p) == (-found.difference, found.p)


def soft(matches: list[int]) -> list[dict]:
    return [
        {
            "id": i,
            "answer": "",
            "prediction": "dog",
            "images": [f"{i}.jpg"],
            "meta": {"answers": ["dog"] * m + ["cat"] * (10 - m)},
        }
        for i, m in enumerate(matches)
    ]


def test_soft_scores_are_compared_by_the_paired_bootstrap():
    random = np.random.default_rng(4)
    first = random.integers(0, 4, 300)
    same = compare("vqav2", soft(first.tolist()), soft(random.permutation(first).tolist()))
    better = compare("vqav2", soft(first.tolist()), soft((first + (random.random(300) < 0.3)).tolist()))
    assert same.test == better.test == BOOTSTRAP
    assert same.difference == pytest.approx(0) and same.p == 1 and same.interval[0] < 0 < same.interval[1]
    assert better.p < 0.001 and better.interval[0] > 0


def test_the_paired_p_is_that_of_the_normal_test_where_there_are_many_rows():
    random = np.random.default_rng(5)
    first = random.integers(0, 4, 400)
    second = np.where(random.random(400) < 0.3, random.integers(0, 4, 400), first)
    found = compare("vqav2", soft(first.tolist()), soft(second.tolist()))
    gain = 0.3 * (second - first)  # of 0, 1, 2 or 3 matches among ten: 0, 0.3, 0.6, 0.9
    z = gain.mean() / (gain.std() / math.sqrt(400))
    assert found.difference == pytest.approx(gain.mean())
    assert found.p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.05)


def test_pope_is_compared_by_its_mean_f1():
    def rows(said: str) -> list[dict]:
        return [
            {
                "id": i,
                "answer": label,
                "prediction": {"y": "yes", "n": "no"}[s],
                "images": [],
                "meta": {"type": "random"},
            }
            for i, (s, label) in enumerate(zip(said, ("yes", "no") * 3, strict=True))
        ]

    found = compare("pope", rows("ynynyy"), rows("ynynyn"))
    assert found.difference == pytest.approx(1 - 6 / 7) and found.test == BOOTSTRAP


def test_other_rows_are_refused():
    with pytest.raises(MmdoraError, match="same rows"):
        compare("exact", exact([True, False]), exact([True]))
