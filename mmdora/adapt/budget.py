"""Spreads a budget of parameters over the ranks of modules, by the singular values of their mean gradients.

A step of rank lets a module follow one more singular direction of its gradient G [O, I]. By Eckart and Young, the best
change of rank r holds the first r of them, and to first order the loss falls in proportion to the sum of their squares.
So the step from rank k - 1 to k is worth sigma_k^2 / (parameters of a step), and steps are taken in this order until
the budget has no room for another.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmdora.errors import MmdoraError

BYTES = 4
"""Bytes of a parameter of an adapter, which is fp32."""
ABOVE_EVEN = 4
"""The highest rank of a module, as a multiple of the rank that the budget would pay for in all modules alike. It bounds
the work and the memory of the calibration; what a few rows say about directions beyond it is mostly noise."""
LEAST_HIGHEST = 8
"""The highest rank of a module where the budget would pay for less than 2 in all alike."""


@dataclass(frozen=True)
class Claim:
    """A module that may get a rank.

    Attributes:
        name: of the module.
        modality: that it belongs to.
        first: parameters of an adapter of rank 1, a magnitude among them.
        step: parameters of each further rank.
        highest: the highest rank that it may get.
        values: the largest singular values of the mean gradient of its matrix, the largest first.
    """

    name: str
    modality: str
    first: int
    step: int
    highest: int
    values: Sequence[float] = ()

    def cost(self, rank: int) -> int:
        """Parameters of an adapter of this rank; none at rank 0, which is no adapter."""
        return self.first + (rank - 1) * self.step if rank else 0


def parameters_of(budget: str, base: int) -> int:
    """The parameters that a budget allows: "2%" of those of the base, or "1.5MB" (of 10^6 bytes) in fp32.

    Args:
        budget: as `adapt.budget`, which has checked its form.
        base: number of parameters of the base.
    """
    if budget.endswith("%"):
        return int(base * float(budget[:-1]) / 100)
    return int(float(budget[:-2]) * 1e6 / BYTES)


def even_ranks(claims: Sequence[Claim], budget: int) -> dict[str, int]:
    """The ranks if all modules get the same, as far as their highest allows; 0 for all if the budget has no rank 1."""
    if not claims:
        return {}
    top = max(claim.highest for claim in claims)
    low, high = 0, top + 1
    while high - low > 1:  # The cost grows with the rank, so the last that fits is found by halving.
        middle = (low + high) // 2
        fits = sum(claim.cost(min(middle, claim.highest)) for claim in claims) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return {claim.name: min(low, claim.highest) for claim in claims}


def highest_ranks(claims: Sequence[Claim], budget: int) -> dict[str, int]:
    """The highest rank that `spread` may give each module; see `ABOVE_EVEN`."""
    even = max(even_ranks(claims, budget).values(), default=0)
    return {claim.name: min(claim.highest, max(LEAST_HIGHEST, ABOVE_EVEN * even)) for claim in claims}


def spread(claims: Sequence[Claim], budget: int) -> dict[str, int]:
    """The rank of each module, 0 for none.

    Their cost is at most `budget`, and no further step of any module would fit, of those that are below their highest
    rank and have a gradient left to follow.

    Raises:
        MmdoraError: nobody has a gradient.
    """
    ranks = {claim.name: 0 for claim in claims}
    left = budget
    # Ties go to the module that comes first in the model, so that the same values give the same ranks.
    queue = [(-_worth(claim, 1), place) for place, claim in enumerate(claims) if _worth(claim, 1) > 0]
    heapq.heapify(queue)
    while queue:
        _, place = heapq.heappop(queue)
        claim = claims[place]
        rank = ranks[claim.name] + 1
        cost = claim.cost(rank) - claim.cost(rank - 1)
        if cost > left:
            continue  # Its later steps cost as much, and what is left only becomes less.
        left -= cost
        ranks[claim.name] = rank
        if (worth := _worth(claim, rank + 1)) > 0:
            heapq.heappush(queue, (-worth, place))
    if not any(ranks.values()):
        raise MmdoraError("adapt.rank: auto: no module that may be adapted has a gradient on these rows")
    return ranks


def _worth(claim: Claim, rank: int) -> float:
    """What the step to this rank is worth per parameter; 0 if there is none."""
    if rank > min(claim.highest, len(claim.values)):
        return 0.0
    value = claim.values[rank - 1]
    return value * value / claim.step if math.isfinite(value) else 0.0
