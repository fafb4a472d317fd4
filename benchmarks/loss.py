"""Measures the chunked loss beside plain cross-entropy: peak memory and time of head and loss, forward and backward.

    python benchmarks/loss.py            # vocabularies of 32k and 152k: table, results/loss.{json,md}; some minutes
    python benchmarks/loss.py --quick    # fewer tokens and rounds, in under a minute; nothing is written

A frozen head is applied to the hidden states of a row with a picture (an eighth of its positions have labels), or of a
row whose positions all have labels; the gradient goes back to the states. "Plain" is transformers' own loss: the head
over every position, then cross-entropy in fp32. Times are process CPU time (on CUDA wall time, synchronised). The ways
take turns in one process, and ratios are medians over rounds of the ratio within a round. `plain again` is the plain
loss measured twice, which shows the noise. Memory is measured for each case in a process of its own, as the peak above
the level before (CPU: RssAnon, read 200 times a second; CUDA: max_memory_allocated).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # Threads that spin while they wait would count as CPU time.

import torch
from harness import memory_of, show, write
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from mmdora.train.loss import IGNORE, LOGITS, chunked_cross_entropy


@dataclass(frozen=True)
class Case:
    """The sizes of head and hidden states in one forward pass."""

    vocabulary: int
    tokens: int
    hidden: int
    labelled: float  # share of the positions with a label


class Pass:
    """Runs forward and backward of head and loss, in either way."""

    def __init__(self, case: Case, device: str):
        generator = torch.Generator().manual_seed(0)
        kind = torch.bfloat16 if device == "cuda" else torch.float32
        self.head = (torch.randn(case.vocabulary, case.hidden, generator=generator) / case.hidden**0.5).to(device, kind)
        self.states = torch.randn(1, case.tokens, case.hidden, generator=generator).to(device, kind).requires_grad_()
        labels = torch.randint(0, case.vocabulary, (1, case.tokens), generator=generator)
        labels[:, : round(case.tokens * (1 - case.labelled))] = IGNORE
        self.labels, self.case = labels.to(device), case

    def plain(self) -> Tensor:
        loss = ForCausalLMLoss(self.states @ self.head.T, self.labels, self.case.vocabulary)
        loss.backward()
        return self._result(loss)

    def chunked(self) -> Tensor:
        targets = torch.nn.functional.pad(self.labels, (0, 1), value=IGNORE)[..., 1:]
        loss = chunked_cross_entropy(lambda s: s @ self.head.T, [], self.states, targets, self.case.vocabulary)
        loss.backward()
        return self._result(loss)

    def _result(self, loss: Tensor) -> Tensor:
        gradient, self.states.grad = self.states.grad, None
        assert gradient is not None
        return torch.stack([loss.detach().float(), gradient.float().norm()])


def ways(made: Pass) -> dict[str, Callable[[], Tensor]]:
    return {"plain": made.plain, "plain again": made.plain, "chunked": made.chunked}


@contextmanager
def watched() -> Iterator[list[int]]:
    """Measure the peak of this process's RssAnon inside the block, in bytes above its level before."""
    before, most, over = memory_of(), [0], threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            most[0] = max(most[0], memory_of() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def memory(case: Case, way: str, device: str) -> float:
    """The peak memory of one pass, in MB."""
    made = Pass(case, device)
    if device == "cuda":
        ways(made)[way]()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ways(made)[way]()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with watched() as most:
        ways(made)[way]()
    return most[0] / 1e6


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(case: Case, rounds: int, device: str) -> list[dict[str, Any]]:
    """The table of one case, with a row for each way.

    Raises:
        SystemExit: if the ways do not give the same loss and gradient.
    """
    made = Pass(case, device)
    times: dict[str, list[float]] = {name: [] for name in ways(made)}
    losses = {name: way() for name, way in ways(made).items()}  # This first pass also warms up.
    tolerance = 1e-2 if device == "cuda" else 1e-5
    if not torch.allclose(losses["plain"], losses["chunked"], rtol=tolerance):
        raise SystemExit(f"not the same: {losses}")
    clock = time.perf_counter if device == "cuda" else time.process_time
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(times), len(times)):
            started = clock()
            ways(made)[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(1e3 * (clock() - started))
    rows = []
    for name, spent in times.items():
        ratio = statistics.median(a / b for a, b in zip(spent, times["plain"], strict=True))
        peak = "" if name.endswith("again") else f"{apart(memory, case, name, device):,.0f}"
        rows.append(
            {"loss": name, "peak MB": peak, "ms": f"{statistics.median(spent):.0f}", "to plain": f"{ratio:.2f}"}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds, nothing written")
    parser.add_argument("--rounds", type=int, default=15, help="passes of each way (default: 15)")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens, hidden = (8192, 4096) if device == "cuda" else (256, 64) if options.quick else (1024, 512)
    tables = {}
    for vocabulary in (32_000, 152_000):
        for labelled, name in ((1 / 8, "a row with a picture"), (1.0, "a row that is all answer")):
            title = f"{name}: vocabulary {vocabulary // 1000}k, {tokens:,} tokens, width {hidden}"
            tables[title] = measure(
                Case(vocabulary, tokens, hidden, labelled), 3 if options.quick else options.rounds, device
            )
            show(title, tables[title])
    if not options.quick:
        notes = f"Chunks of at most {LOGITS:,} logits; {options.rounds} rounds, {torch.get_num_threads()} threads."
        name = "loss" if device == "cpu" else "loss_cuda"
        print(write(name, "python benchmarks/loss.py", tables, notes))


if __name__ == "__main__":
    main()
