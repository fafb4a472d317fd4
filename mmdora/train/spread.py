"""The memory of one device where several train together: what each strategy shards and what it replicates.

| | weights | gradients and moments | besides |
|---|---|---|---|
| ddp | replicated | replicated | buckets as large as the gradients, in which these are sent |
| fsdp2 | sharded | sharded; with accumulation, gradients are whole until the last micro-batch | what is gathered |
| zero2 | replicated | sharded | a copy of the shard of what trains, and a bucket |
| zero3 | sharded | sharded | likewise, and what is gathered |

Activations are those of a process's own micro-batch. What FSDP2 gathers at a time is what accelerate makes a unit of:
two blocks (one computes while the next is fetched), and output head and everything outside of blocks, which stay. For
DeepSpeed the sizes are those of its documented defaults (a bucket of 5e8 elements, 1e9 gathered ones).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.train.memory import Estimate, Held

Strategy = Literal["ddp", "fsdp2", "zero2", "zero3"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
SHARDED = ("fsdp2", "zero3")
"""Strategies of which each device holds a part of the weights."""
BUCKET, LIVE = 5 * 10**8, 10**9
"""Elements: DeepSpeed's `reduce_bucket_size` and `stage3_max_live_parameters`, by default."""


@dataclass(frozen=True)
class Spread:
    """How many processes train together, each on a device of its own, and by which strategy.

    Raises:
        MmdoraError: if there is no such strategy, or no process.
    """

    processes: int
    strategy: Strategy = "ddp"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise MmdoraError(f"--strategy {self.strategy}: must be one of {', '.join(STRATEGIES)}")
        if self.processes < 1:
            raise MmdoraError(f"--processes {self.processes}: must be at least 1")

    def __str__(self) -> str:
        return f"each of {self.processes} devices, {self.strategy}"


ALONE = Spread(1)
PACKED = "a quantised base cannot be used with FSDP or DeepSpeed, which would shard packed weights; use DDP"


def check_sharded(config: RunConfig) -> None:
    """Raise an MmdoraError if a config cannot be trained where parameters or their state are sharded."""
    if config.data.stream:
        raise MmdoraError(
            "data.stream cannot be used with FSDP or DeepSpeed, which need an image in every micro-batch; leave one out"
        )
    if config.model.quantize is not None:
        raise MmdoraError(PACKED)


def per_device(whole: Estimate, model: Any, config: RunConfig, spread: Spread) -> Estimate:
    """The estimate for one device of several, from the estimate for one device alone.

    Args:
        whole: for a single device that trains with the same micro-batch.
        model: the untouched base or its skeleton; only its names and shapes are read.

    Raises:
        MmdoraError: if the config cannot be trained like this.
    """
    if spread.processes == 1:
        return whole
    gradients = sum(whole.gradients.values())
    if spread.strategy == "ddp":
        return replace(whole, sent=gradients)
    check_sharded(config)
    n, trained = spread.processes, [held for held in whole.held if held.trains]
    frozen = [held for held in whole.held if not held.trains]
    parts = replace(
        whole,
        frozen=_shards(frozen, n) if spread.strategy in SHARDED else whole.frozen,
        trained=_shards(trained, n) if spread.strategy in SHARDED else whole.trained,
        gradients=_scaled(whole.gradients, _shards(trained, n), whole.trained),
        moments=_scaled(whole.moments, _shards(trained, n), whole.trained),
    )
    if spread.strategy == "fsdp2":
        if config.training.accumulation > 1:
            parts = replace(parts, gradients=whole.gradients)
        gathered, their_gradients = _gathered(whole.held, model)
        return replace(parts, gathered=gathered, sent=2 * their_gradients)
    copies = sum(_shards(trained, n).values())
    sent = copies + min(gradients, BUCKET * 4)
    gathered = min(sum(held.size for held in whole.held), LIVE * max(held.width for held in whole.held))
    return replace(parts, sent=sent, gathered=gathered if spread.strategy == "zero3" else 0)


def _shards(held: Iterable[Held], processes: int) -> dict[str, int]:
    """Modality -> bytes of the largest shard. Parameters are cut along their first dimension, as FSDP2 does."""
    bytes_of: Counter[str] = Counter()
    for one in held:
        rows = one.shape[0] if one.shape else 1
        bytes_of[one.modality] += one.size // max(rows, 1) * math.ceil(rows / processes)
    return dict(bytes_of)


def _scaled(whole: Mapping[str, int], shards: Mapping[str, int], trained: Mapping[str, int]) -> dict[str, int]:
    """The shards of what has one value for each trained parameter, such as gradients and moments."""
    return {modality: int(size * shards[modality] / trained[modality]) for modality, size in whole.items()}


def blocks_of(model: Any) -> list[str]:
    """Names of the modules that are gathered one at a time: those of the classes that the model names for it."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [name for name, module in model.named_modules() if type(module).__name__ in names]


def _gathered(held: Iterable[Held], model: Any) -> tuple[int, int]:
    """Bytes that are whole at a time, and bytes of the gradients of the unit of which most trains."""
    blocks = [f"{name}." for name in blocks_of(model)]
    # Blocks inside of blocks are units of their own, so the innermost one counts.
    of_block, trains = Counter[str](), Counter[str]()
    outside, embedding = 0, _embedding(model)
    for one in held:
        block = max((block for block in blocks if one.name.startswith(block)), key=len, default="")
        if one.trains:
            trains[block] += one.size
        if block:
            of_block[block] += one.size
        elif one.name != embedding:
            outside += one.size
    return outside + 2 * max(of_block.values(), default=0), max(trains.values(), default=0)


def _embedding(model: Any) -> str | None:
    """Name of the input embedding's weight, a unit of its own that is not kept; None if the output head shares it."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or (head is not None and head.weight is embedding.weight):
        return None
    return next((name for name, parameter in model.named_parameters() if parameter is embedding.weight), None)
