"""Measures what mmdora's training loop costs beside a bare loop, with the same model, batches and optimizer.

    python benchmarks/loop.py            # table, results/loop.{json,md}; some minutes
    python benchmarks/loop.py --quick    # few steps and rounds, in under a minute; nothing is written

A round trains tiny-llava (DoRA in the language model, four rows and two micro-batches per step, a log every ten steps)
once with `mmdora.train.loop.Loop`, and once with a bare loop of forward, backward, clipping, AdamW and schedule. Both
start from the same weights, in a new order every round. Both must end with the same loss, or the benchmark fails. The
time is process CPU time from the end of the first step to the end of the last, so that start and end do not count.
Batches are made once and given to both, because loader.py measures the loader. `bare loop again` is the bare loop
measured twice, which shows the noise.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # Threads that spin while they wait would count as CPU time.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from harness import show, write
from transformers import get_constant_schedule

from mmdora.adapt.inject import inject
from mmdora.batches.fit import Rows, fit
from mmdora.config import RunConfig, validate
from mmdora.data_prep import scenes
from mmdora.families import family_of
from mmdora.models.load import load
from mmdora.records.reader import read_records, write_records
from mmdora.records.record import qa_record
from mmdora.train.callbacks import Callbacks
from mmdora.train.groups import parameter_groups
from mmdora.train.guards import StopRequest
from mmdora.train.loader import Feed
from mmdora.train.loop import Loop, Observers
from mmdora.train.loss import chunked_cross_entropy
from mmdora.train.objective import Objective
from mmdora.train.optimizer import prepare
from mmdora.train.processes import Processes
from mmdora.train.progress import Progress
from mmdora.train.saving import Checkpoints

ROWS, MICRO, ACCUMULATION = 64, 2, 2
"""Rows of the data; rows of a micro-batch; micro-batches of a step."""


def drawn(folder: Path) -> Path:
    """Write records with one picture and some questions each."""
    rows = []
    for number in range(ROWS):
        things, picture = scenes.scene(random.Random(number))
        picture.save(folder / f"{number}.png")
        rows.append(qa_record(f"s{number}", f"{number}.png", scenes.conversation(random.Random(number), things)))
    write_records(folder / "records.jsonl", rows)
    return folder / "records.jsonl"


def config_of(records: Path, output: Path, steps: int) -> RunConfig:
    tree = {
        "adapt": {"language": {"method": "dora", "rank": 16}},
        "data": {"train": str(records)},
        "training": {"output": str(output), "steps": steps, "batch_size": MICRO, "accumulation": ACCUMULATION,
                     "schedule": "constant", "warmup": 0, "lr": 1e-4},
    }  # fmt: skip
    return validate(RunConfig, tree, where=lambda key: "benchmark")


class Ready:
    """A collator that makes each batch once."""

    def __init__(self, collate: Any):
        self.collate, self.made = collate, {}

    def __call__(self, rows: list[Any]) -> dict[str, torch.Tensor]:
        name = " ".join(row["id"] for row in rows)
        if name not in self.made:
            self.made[name] = self.collate(rows)
        return dict(self.made[name])


class Clock:
    """A `Report` that measures CPU seconds per step, from the end of the first step to the end of the last."""

    def __init__(self) -> None:
        self.started = self.spent = 0.0

    def begin(self, progress: Progress) -> None: ...

    def step(self, progress: Progress) -> None:
        self.note(progress.global_step, progress.max_steps)

    def log(self, progress: Progress, logs: Any) -> None: ...

    def close(self) -> None: ...

    def note(self, done: int, of: int) -> None:
        if done == 1:
            self.started = time.process_time()
        elif done == of:
            self.spent = (time.process_time() - self.started) / (of - 1)


class Case:
    """The data, model and batches that all ways share."""

    def __init__(self, folder: Path, steps: int):
        self.folder, self.steps = folder, steps
        self.config = config_of(drawn(folder), folder / "run", steps)
        self.model, processor = load("tiny-llava")
        inject(self.model, self.config.adapt)
        self.records = read_records(folder / "records.jsonl")
        self.rows: Rows = fit(self.records, family_of(processor), None, "error")
        self.collate = Ready(family_of(processor).batch)
        self.weights = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}
        self.ours()  # This run makes every batch, so that later runs find them ready.

    def again(self) -> None:
        """Set the weights back to what they were at the beginning."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self.weights:
                    parameter.copy_(self.weights[name])
                    parameter.grad = None

    def ours(self) -> tuple[float, float]:
        """Train with mmdora's loop; gives the CPU seconds per step and the loss of the last step."""
        self.again()
        config, processes, clock = self.config, Processes(self.config.training), Clock()
        feed = Feed(config, self.rows, self.collate, processes)
        trained = prepare(self.model, config, processes, self.steps, None)
        checkpoints = Checkpoints(config, processes, trained, {}, None)
        objective = Objective(self.model, processes, one_stream=True, chunked=True, probe=feed.probe, say=print)
        observers = Observers([clock], StopRequest(processes), print, Callbacks((), config, processes, {}, 1))
        loop = Loop(config, processes, trained, feed, objective, None, checkpoints, observers)
        take, losses = loop.steps.take, [0.0]

        def watched(batches: list[dict[str, Any]]) -> tuple[Any, float]:
            before = float(loop.losses.sum)
            result = take(batches)
            losses[0] = float(loop.losses.sum) - before
            return result

        loop.steps.take = watched
        loop.run()
        return clock.spent, losses[0]

    def bare(self) -> tuple[float, float]:
        """Train with the least code that makes the same updates; gives the same as `ours`."""
        self.again()
        model, config, clock = self.model.train(), self.config, Clock()
        optimizer = torch.optim.AdamW(parameter_groups(model, config.adapt, config.training), fused=True)
        trained = [p for p in model.parameters() if p.requires_grad]
        schedule = get_constant_schedule(optimizer)
        order: Any = Feed(config, self.rows, self.collate, Processes(config.training)).batches
        head, per_epoch, loss = model.lm_head, len(order) // ACCUMULATION, torch.zeros(())
        plain, model.loss_function, head.forward = model.loss_function, _chunked(head), lambda states: states
        try:
            for number in range(self.steps):
                epoch, place = divmod(number, per_epoch)
                order.set_epoch(epoch)
                chosen = [order.of_round(place * ACCUMULATION + i, 0) for i in range(ACCUMULATION)]
                batches = [self.collate([self.rows[i] for i in members]) for members in chosen]
                items = torch.stack([(batch["labels"][..., 1:] != -100).sum() for batch in batches]).sum()
                loss = torch.zeros(())
                for batch in batches:
                    part = model(**batch, num_items_in_batch=items, use_cache=False).loss
                    part.backward()
                    loss += part.detach()
                torch.nn.utils.clip_grad_norm_(trained, config.training.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                clock.note(number + 1, self.steps)
        finally:
            model.loss_function = plain
            del head.forward
        return clock.spent, float(loss)


def _chunked(head: Any) -> Callable[..., torch.Tensor]:
    """The loss function that mmdora's loop uses too."""

    def loss(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int = 0, **more: Any) -> torch.Tensor:
        targets = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
        forward = type(head).forward
        return chunked_cross_entropy(
            lambda states: forward(head, states), [], logits, targets, head.weight.shape[0], more["num_items_in_batch"]
        )

    return loss


def measure(folder: Path, steps: int, rounds: int) -> list[dict[str, Any]]:
    case = Case(folder, steps)
    ways = {"bare loop": case.bare, "bare loop again": case.bare, "mmdora's loop": case.ours}
    times: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, float] = {}
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(ways), len(ways)):
            spent, losses[name] = ways[name]()
            times[name].append(1e3 * spent)
        if max(losses.values()) - min(losses.values()) > 1e-5 * max(losses.values()):
            raise SystemExit(f"not the same training: {losses}")
    base = times["bare loop"]
    return [
        {
            "way": name,
            "CPU ms per step": f"{statistics.median(spent):.1f}",
            "to the bare loop": f"{statistics.median(a / b for a, b in zip(spent, base, strict=True)):.3f}",
            "last loss": f"{losses[name]:.6f}",
        }
        for name, spent in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps and rounds, nothing written")
    parser.add_argument("--rounds", type=int, default=15, help="runs of each way (default: 15)")
    options = parser.parse_args()
    steps, rounds = (12, 2) if options.quick else (60, options.rounds)
    with tempfile.TemporaryDirectory(prefix="mmdora-loop-") as folder:
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
        table = measure(Path(folder), steps, rounds)
    show("a step of the loop", table)
    if not options.quick:
        notes = f"{rounds} rounds of {steps} steps, {torch.get_num_threads()} threads; the ratio is a paired median."
        print(write("loop", "python benchmarks/loop.py", {"a step of the loop": table}, notes))


if __name__ == "__main__":
    main()
