"""Budgets of ranks: what is spent, on whom, and what is left."""

import random

import pytest
from shrunken import shrunken_llava

from mmdora.adapt.budget import Claim, even_ranks, highest_ranks, parameters_of, spread
from mmdora.adapt.inject import inject, make_plan
from mmdora.adapt.wanted import budget_of
from mmdora.config import Adapt, validate
from mmdora.errors import MmdoraError


def claims(seed: int, count: int = 12) -> list[Claim]:
    drawn = random.Random(seed)
    found = []
    for number in range(count):
        step, highest = drawn.randint(20, 400), drawn.randint(1, 30)
        values = sorted((drawn.random() ** 3 for _ in range(40)), reverse=True)
        found.append(Claim(f"m{number}", "language", step + drawn.randint(0, 100), step, highest, values))
    return found


def cost(own: list[Claim], ranks: dict[str, int]) -> int:
    return sum(claim.cost(ranks[claim.name]) for claim in own)


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_is_never_exceeded_and_no_further_step_fits(seed):
    own, budget = claims(seed), random.Random(-seed).randint(2_000, 30_000)
    ranks = spread(own, budget)
    left = budget - cost(own, ranks)
    assert left >= 0
    for claim in own:
        rank = ranks[claim.name]
        assert rank <= claim.highest
        assert rank == claim.highest or claim.cost(rank + 1) - claim.cost(rank) > left


def test_steps_go_where_the_squared_value_per_parameter_is_largest():
    """With steps of one price, the components taken are the largest of all modules together."""
    drawn = random.Random(0)
    values = [sorted((drawn.random() for _ in range(20)), reverse=True) for _ in range(5)]
    own = [Claim(f"m{i}", "language", 10, 10, 20, each) for i, each in enumerate(values)]
    ranks = spread(own, 370)
    largest = sorted((value for claim in own for value in claim.values), reverse=True)[:37]
    assert ranks == {claim.name: sum(value >= largest[-1] for value in claim.values) for claim in own}
    twice = [Claim("dear", "language", 20, 20, 9, [2.0, 1.4]), Claim("cheap", "language", 10, 10, 9, [1.2, 1.1])]
    assert spread(twice, 40) == {"dear": 1, "cheap": 2}  # 4/20, 1.44/10, 1.21/10, and then 1.96/20, for which 0 is left


def test_a_module_without_a_gradient_gets_no_rank():
    own = [Claim("dead", "language", 10, 10, 9, [0.0, 0.0]), Claim("live", "language", 10, 10, 2, [1.0, 0.5, 0.1])]
    assert spread(own, 1000) == {"dead": 0, "live": 2}
    with pytest.raises(MmdoraError, match="no module that may be adapted has a gradient"):
        spread(own[:1], 1000)


@pytest.mark.parametrize("seed", range(5))
def test_even_ranks_are_the_highest_that_all_modules_can_have(seed):
    own, budget = claims(seed), 20_000
    ranks = even_ranks(own, budget)
    top = max(ranks.values())
    assert ranks == {claim.name: min(top, claim.highest) for claim in own}
    assert cost(own, ranks) <= budget < cost(own, {c.name: min(top + 1, c.highest) for c in own})
    highest = highest_ranks(own, budget)
    assert highest == {claim.name: min(claim.highest, max(8, 4 * top)) for claim in own}


def test_a_budget_is_a_share_of_the_base_or_bytes_in_fp32():
    assert parameters_of("2%", 1_000_049) == 20_000
    assert parameters_of("0.5%", 1000) == 5
    assert parameters_of("1.5MB", 7) == 375_000


AUTO = {
    "vision": {"method": "dora", "targets": ["attention"]},
    "language": {"method": "lora"},
    "rank": "auto",
    "budget": "3%",
}


def test_a_plan_counts_what_the_budget_is_spent_on():
    model = shrunken_llava()
    own, budget = budget_of(model, validate(Adapt, AUTO, where=str))
    assert budget == int(0.03 * sum(p.numel() for p in model.parameters()))
    ranks = {claim.name: number % 3 for number, claim in enumerate(own)}
    plan = make_plan(model, AUTO, ranks)
    assert {entry.name: entry.rank for entry in plan.entries} == {name: rank for name, rank in ranks.items() if rank}
    assert sum(entry.parameters for entry in plan.entries) == cost(own, ranks)
    assert all(entry.scaling == 2.0 and entry.alpha == 2 * entry.rank for entry in plan.entries)
    assert "adapt.budget 3%, spread by the gradients" in str(plan) and "has no rank for" in str(plan)


def test_without_a_calibration_the_plan_is_even_and_says_so():
    model = shrunken_llava()
    own, budget = budget_of(model, validate(Adapt, AUTO, where=str))
    assert not any(even_ranks(own, budget).values())
    plan = make_plan(model, AUTO)
    assert {entry.rank for entry in plan.entries} == {1} and len(plan.entries) == len(own)
    assert "which is less than rank 1 of every module" in str(plan)
    own, budget = budget_of(model, adapt := validate(Adapt, AUTO | {"budget": "0.2MB"}, where=str))
    assert budget == 50_000
    plan = make_plan(model, adapt)
    assert {entry.name: entry.rank for entry in plan.entries} == even_ranks(own, budget)
    assert "spread evenly; mmdora train spreads them" in str(plan)
    with pytest.raises(MmdoraError, match="needs rows to measure gradients on"):
        inject(model, AUTO)
    with pytest.raises(MmdoraError, match=r"0.01%: \d parameters are left for ranks, and rank 1 of the smallest"):
        make_plan(model, AUTO | {"budget": "0.01%"})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"budget": None}, "rank: auto needs a budget such as 2%"),
        ({"budget": "2"}, "found '2'"),
        ({"budget": "0%"}, "found '0%'"),
        ({"rank": None}, "budget is for rank: auto"),
        ({"rank": None, "budget": None, "calibration_rows": 3}, "calibration_rows is for rank: auto"),
        ({"language": {"method": "lora", "rank": 4}}, "language.rank is set beside rank: auto"),
        ({"vision": {"method": "magnitude"}, "language": {"method": "full"}}, "and there is none"),
    ],
)
def test_keys_that_do_not_fit_together(changed, told):
    with pytest.raises(MmdoraError) as error:
        validate(Adapt, AUTO | changed, where=lambda key: "adapt")
    assert told in str(error.value)
