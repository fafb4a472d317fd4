"""The memory of each of several devices: what is sharded, what is not, and what a config cannot be trained with.

`test_processes_in_bf16.py` holds DDP and FSDP2 against the bytes that two processes count.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmdora.adapt.inject import make_plan
from mmdora.cli import main
from mmdora.config import RunConfig, validate
from mmdora.families import family_of
from mmdora.models.base import skeleton
from mmdora.models.load import load_processor
from mmdora.train.memory import Estimate, estimate, typical_batch
from mmdora.train.spread import ALONE, STRATEGIES, Spread, per_device

TREE = {
    "adapt": {"language": {"method": "dora", "rank": 8}, "projector": {"method": "full"}},
    "data": {"max_length": 64},
    "training": {"batch_size": 1},
}
TINY = ["--config", "configs/tiny/dora.yaml"]
CONFIG = validate(RunConfig, TREE, where=str)


@pytest.fixture(scope="module")
def base():
    model = skeleton("tiny-llava")
    batch = typical_batch(family_of(load_processor("tiny-llava")), CONFIG)
    return model, estimate(model, make_plan(model, CONFIG.adapt), CONFIG, batch)


def parts(found: Estimate) -> list[int]:
    return [sum(part.values()) for part in (found.frozen, found.trained, found.gradients, found.moments)]


def test_what_each_strategy_shards(base):
    model, alone = base
    whole = parts(alone)
    assert per_device(alone, model, CONFIG, ALONE) == alone
    sharded = {"ddp": (), "fsdp2": (0, 1, 2, 3), "zero2": (2, 3), "zero3": (0, 1, 2, 3)}
    for strategy in STRATEGIES:
        found = per_device(alone, model, CONFIG, Spread(4, strategy))
        for number, (one, all_) in enumerate(zip(parts(found), whole, strict=True)):
            assert one == pytest.approx(all_ / (4 if number in sharded[strategy] else 1), rel=0.02), (strategy, number)
        assert (found.activations, found.buffers) == (alone.activations, alone.buffers)
        assert (found.gathered > 0) == (strategy in ("fsdp2", "zero3")) and found.sent > 0
        assert (
            sum(parts(found)) + sum(found.activations.values()) + found.buffers + found.gathered + found.sent
            == found.peak
        )


def test_gradients_of_fsdp2_are_whole_with_accumulation(base):
    model, alone = base
    config = replace(CONFIG, training=replace(CONFIG.training, accumulation=2))
    assert per_device(alone, model, config, Spread(4, "fsdp2")).gradients == alone.gradients


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--processes", "2"], "--processes: the memory of a device needs a config (--config)"),
        ([*TINY, "--processes", "0"], "--processes 0: must be at least 1"),
        (
            [
                "--config",
                "configs/tiny/dora.yaml",
                "--processes",
                "2",
                "--strategy",
                "zero3",
                "--model.quantize",
                "nf4",
            ],
            "a quantised base cannot be used with FSDP or DeepSpeed, which would shard packed weights; use DDP",
        ),
    ],
)
def test_one_line(words, line, capsys):
    assert main(["inspect", "tiny-llava", *words]) == 2
    assert line in " ".join(capsys.readouterr().err.split())


def test_the_command(capsys):
    words = [
        "--config",
        "configs/tiny/dora.yaml",
        "--processes",
        "8",
        "--strategy",
        "fsdp2",
        "--training.batch_size",
        "1",
    ]
    assert main(["inspect", "tiny-llava", *words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "on each of 8 devices, fsdp2" in out and "gathered weights" in out
