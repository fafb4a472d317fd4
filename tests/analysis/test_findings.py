"""Correlations against numpy, the interval against a plain bootstrap, the verdicts against made-up rows."""

import numpy as np
import pytest

from mmdora.analysis.findings import (
    ALL,
    EVERY,
    QUERY,
    conclusions,
    correlation,
    correlations,
    number,
    summaries,
    verdicts,
)
from mmdora.analysis.plots import labelled, places
from mmdora.analysis.rows import WeightRow
from mmdora.analysis.spread import spreads


def row(name: str, step: int, delta_m: float | None, delta_d: float | None, **changes) -> WeightRow:
    values = {
        "run": "r", "step": step, "name": name, "modality": "language", "layer": 0, "kind": "linear", "method": "lora",
        "rank": 2, "rows": 4, "columns": 4, "delta_m": delta_m, "delta_d": delta_d, "effective_rank": 2.0,
        "stable_rank": 1.5, "base_norm": 2.0, "delta_norm": 1.0, "relative": 0.5, "share": 0.1,
    }  # fmt: skip
    return WeightRow(**(values | changes))


def cloud(slope: float, matrices: int = 12, checkpoints: int = 4, noise: float = 0.5, **changes) -> list[WeightRow]:
    """Points around a line whose matrices differ more than their checkpoints."""
    random = np.random.default_rng(3)
    rows = []
    for index in range(matrices):
        x, off = random.normal(), noise * random.normal()
        for step in range(checkpoints):
            dd = x + 0.1 * random.normal()
            name = f"{changes.get('modality', 'language')}.layers.{index}.q_proj"
            rows.append(row(name, step, 1e-3 * (slope * dd + off), 1e-7 * dd, layer=index, **changes))
    return rows


@pytest.mark.parametrize("slope", [1.0, -1.0, 0.1])
def test_r_is_numpys(slope):
    rows = cloud(slope)
    score = correlation(rows)
    assert score is not None
    points = np.array([(r.delta_m, r.delta_d) for r in rows])
    assert score.value == pytest.approx(np.corrcoef(points.T)[0, 1], rel=1e-9) and score.n == 48


def test_the_interval_draws_whole_matrices():
    rows = cloud(0.8)
    score = correlation(rows)
    assert score is not None and score.interval is not None
    points, random = np.array([(r.delta_m, r.delta_d) for r in rows]).reshape(12, 4, 2), np.random.default_rng(1)
    drawn = [np.corrcoef(points[random.integers(12, size=12)].reshape(-1, 2).T)[0, 1] for _ in range(4000)]
    assert score.interval == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.03)
    loose = np.array([(r.delta_m, r.delta_d) for r in rows])
    naive = [np.corrcoef(loose[random.integers(48, size=48)].T)[0, 1] for _ in range(4000)]
    low, high = np.percentile(naive, [2.5, 97.5])
    assert score.interval[1] - score.interval[0] > 1.3 * (high - low)  # as if 48 points were independent


def test_no_interval_of_few_matrices_and_no_r_of_what_does_not_vary():
    few = correlation(cloud(1.0, matrices=4))
    assert few is not None and few.interval is None
    assert correlation([]) is None
    assert correlation([row(f"q{i}", 0, float(i), 0.0) for i in range(9)]) is None  # magnitudes alone: dD = 0
    assert correlation(cloud(1.0, matrices=1, checkpoints=2)) is None


@pytest.mark.parametrize(
    ("method", "slope", "says"),
    [
        ("lora", 1.0, "excludes zero, and the sign of the paper's +0.83 is reproduced"),
        ("lora", -1.0, "excludes zero, and the sign of the paper's +0.83 is refuted"),
        ("dora", -1.0, "excludes zero, and the sign of the paper's −0.31 is reproduced"),
        ("dora", 1.0, "excludes zero, and the sign of the paper's −0.31 is refuted"),
        ("full", -1.0, "excludes zero, and the sign of the paper's −0.62 is reproduced"),
        ("full", 0.0, "includes zero, so the paper's −0.62 is neither reproduced nor refuted"),
    ],
)
def test_verdicts(method, slope, says):
    rows = [*cloud(slope, method=method), row("layers.0.k_proj", 0, 5.0, 5.0, method=method)]
    query, every = verdicts(correlations(rows))
    assert says in query and "over 12 query matrices" in query and "over 13 language matrices" in every


def test_groups():
    vision = cloud(1.0, modality="vision")
    rows = vision + cloud(-1.0) + [row("b", 0, None, None, kind="other", modality="projector")]
    found = {(c.modality, c.over): c.score for c in correlations(rows)}
    assert set(found) == {(part, over) for part in ("vision", "language", ALL) for over in (EVERY, QUERY)}
    assert found["vision", EVERY].value > 0.5 > -0.5 > found["language", EVERY].value
    assert abs(found[ALL, EVERY].value) < 0.3
    lines = verdicts(correlations(rows))
    for line, words in zip(lines, ("24 query matrices", "12 language matrices", "24 matrices"), strict=True):
        assert f"over {words} " in line
    assert {c.outcome for c in correlations(rows) if c.modality == "vision"} == {"reproduced"}
    assert {c.outcome for c in correlations(rows) if c.modality == "language"} == {"refuted"}
    alone = correlations(cloud(1.0, method="magnitude"))
    assert alone and verdicts(alone) == [] and {c.outcome for c in alone} == {""}


def test_few_matrices_decide_nothing():
    found = correlations(cloud(1.0, matrices=4))
    assert {c.outcome for c in found} == {"undecided"}
    assert all("too few matrices" in line for line in verdicts(found))


def test_summaries_are_of_the_last_checkpoint():
    rows = [
        row("a", 1, 9.0, 9.0, share=1.0),
        row("a", 2, 1.0, 0.1, share=0.3, delta_norm=3.0, base_norm=4.0, effective_rank=2.0),
        row("b", 2, 3.0, 0.3, share=0.2, delta_norm=4.0, base_norm=3.0, effective_rank=6.0),
        row("c", 2, None, None, share=0.1, kind="other", delta_norm=0.0, base_norm=0.0, effective_rank=None,
            stable_rank=None),
        row("d", 2, 7.0, 0.7, share=0.4, modality="vision", method="full"),
    ]  # fmt: skip
    vision, language = summaries(rows)
    assert (vision.modality, vision.share, vision.delta_m) == ("vision", 0.4, 7.0)
    assert language.matrices == 2 and language.share == pytest.approx(0.6)
    assert (language.delta_m, language.delta_d, language.effective_rank) == (2.0, pytest.approx(0.2), 4.0)
    assert language.relative == pytest.approx(1.0)  # 5 over 5


def test_the_first_line_says_where_the_change_lies():
    rows = [
        row("a", 2, 0.5, 0.25, share=0.75),
        row("b", 2, 0.1, 0.1, share=0.25, modality="vision", method="dora"),
        row("c", 2, None, None, share=1.0, run="bias", modality="other", method="full"),
    ]
    assert conclusions(summaries(rows)) == [
        "r: of the whole change, 75% language (LoRA), 25% vision (DoRA). In the largest part it turned the "
        "directions by 0.25 on average and changed magnitudes by 0.5; its change has an effective rank of 2.",
        "bias: of the whole change, 100% other (full fine-tuning).",
    ]


def test_places_in_their_order():
    names = ["model.embed_tokens", "model.layers.0.q_proj", "model.layers.1.q_proj", "model.layers.10.q_proj", "head"]
    lora = [row(name, 0, 1.0, 1.0, run="lora") for name in names[1:4]]
    spots = places(lora + [row(name, 0, 1.0, 1.0, run="full") for name in names], "language")
    assert list(labelled(spots).values()) == ["embed_tokens", "0", "1", "10", "head"]
    both = [row(f"model.{side}.layers.{i}.q_proj", 0, 1.0, 1.0) for side in ("encoder", "decoder") for i in (0, 1)]
    assert list(labelled(places(both, "language")).values()) == ["encoder 0", "encoder 1", "decoder 0", "decoder 1"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.012345, "0.0123"),
        (96.0, "96"),
        (7.64e-5, "7.6·10⁻⁵"),
        (1e-12, "1·10⁻¹²"),
        (2e9, "2·10⁹"),
    ],
)
def test_numbers(value, shown):
    assert number(value) == shown


def changed(run: str, method: str, effective: list[float], rank: int = 2, **changes) -> list[WeightRow]:
    return [
        row(f"layers.{i}.q_proj", 9, 1e-3, 1e-7, run=run, method=method, rank=rank, effective_rank=value, **changes)
        for i, value in enumerate(effective)
    ]


def test_the_entropy_of_singular_values_is_compared_matrix_by_matrix():
    lora = [1.2, 1.3, 1.4, 1.5, 1.6, 1.7]
    dora = [own * np.exp(0.25 + 0.01 * i) for i, own in enumerate(lora)]
    (found,) = spreads(changed("a", "dora", dora) + changed("b", "lora", lora))
    assert (found.first, found.second) == (("b", "lora"), ("a", "dora"))
    assert found.difference.value == pytest.approx(0.275) and found.entropies[0] == pytest.approx(np.log(lora).mean())
    assert "over the same 6 matrices" in str(found) and "is reproduced here" in str(found)
    (turned,) = spreads(changed("a", "dora", lora) + changed("b", "lora", dora))
    assert "is refuted here" in str(turned)
    (same,) = spreads(changed("a", "dora", lora) + changed("b", "lora", lora[::-1]))
    assert "is neither reproduced nor refuted here" in str(same)


def test_entropies_are_not_compared_across_ranks_methods_or_modalities():
    six = [1.2, 1.3, 1.4, 1.5, 1.6, 1.7]
    assert not spreads(changed("a", "dora", six, rank=4) + changed("b", "lora", six))
    assert not spreads(changed("a", "dora", six, modality="vision") + changed("b", "lora", six))
    assert not spreads(changed("a", "lora", six) + changed("b", "lora", six))
    (few,) = spreads(changed("a", "full", six[:3], rank=0) + changed("b", "lora", six[:3]))
    assert "too few matrices for an interval" in str(few) and "full fine-tuning" in str(few)
