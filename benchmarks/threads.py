"""Measures two ways in which OpenMP's threads can wait: a training step, alone and beside busy processes.

    python benchmarks/threads.py            # table, results/threads.{json,md}; twenty minutes without other load
    python benchmarks/threads.py --quick    # one round; nothing is written

A step is that of configs/tiny/dora.yaml (tiny-llava, DoRA everywhere, 64 rows): forward, backward, AdamW. OpenMP reads
its variables when torch is imported, so each way of waiting has a process of its own, which takes its steps when it is
told to and sleeps otherwise. In every round each way takes some steps under each load, in a new order. `spin` is
torch's default, `sleep` is what the command line sets (`OMP_WAIT_POLICY=PASSIVE`), and `spin again` shows the noise.
The busy processes count in a loop and have the same priority. Times are wall time, so other programs on the machine are
load too; the mean number of processes that want a core is in the notes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

THREADS = 2  # OpenMP threads of a process that takes steps.
LOADS = {"alone": 0, "1 busy process": 1, "8 busy processes": 8}
WAYS = {"spin": {}, "spin again": {}, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}}
CONFIG = Path(__file__).parents[1] / "configs" / "tiny" / "dora.yaml"


def work() -> None:
    """Read a number from each line of standard input, take that many steps, and print the mean seconds of a step."""
    import torch

    from mmdora.adapt.inject import inject
    from mmdora.batches.fit import fit
    from mmdora.config import load_config
    from mmdora.data_prep import scenes
    from mmdora.families import family_of
    from mmdora.models.load import load
    from mmdora.records.reader import read_records, write_records
    from mmdora.records.record import qa_record

    config = load_config(CONFIG, ["--training.batch_size=64"])
    torch.manual_seed(0)
    model, processor = load("tiny-llava")
    inject(model, config.adapt)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number in range(config.training.batch_size):
            things, picture = scenes.scene(random.Random(number))
            picture.save(Path(folder) / f"{number}.png")
            turns = scenes.conversation(random.Random(number), things)[: config.data.max_turns]
            rows.append(qa_record(f"s{number}", f"{number}.png", turns))
        write_records(Path(folder) / "records.jsonl", rows)
        family = family_of(processor)
        fitted = fit(read_records(Path(folder) / "records.jsonl"), family, None, "error")
        batch = family.batch([fitted[i] for i in range(len(fitted))])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.train()
    print("ready", flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        for _ in range(int(line)):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print((time.perf_counter() - begun) / int(line), flush=True)


class Worker:
    """A process that takes steps with one way of waiting."""

    def __init__(self, variables: dict[str, str]):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
        ours = {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", **variables}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work"], env=kept | ours, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._line() == "ready"

    def seconds(self, steps: int) -> float:
        """The mean wall seconds of a step, over `steps` steps."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        return float(self._line())

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            sys.exit(f"a worker ended with code {self.process.wait()}")
        return line


def spend() -> None:
    """Use one core until the process that started this one ends."""
    parent = os.getppid()
    while os.getppid() == parent:
        pass  # Counting nothing keeps the core as busy as anything.


@contextmanager
def busy(count: int) -> Iterator[None]:
    spenders = [multiprocessing.get_context("spawn").Process(target=spend, daemon=True) for _ in range(count)]
    for spender in spenders:
        spender.start()
    try:
        yield
    finally:
        for spender in spenders:
            spender.terminate()
            spender.join()


def measure(rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Load -> way -> seconds of a step in each round."""
    workers = {way: Worker(variables) for way, variables in WAYS.items()}
    times: dict[str, dict[str, list[float]]] = {load: {way: [] for way in WAYS} for load in LOADS}
    shuffle = random.Random(0)
    for worker in workers.values():
        worker.seconds(2)  # The first steps allocate memory and are not measured.
    for _ in range(rounds):
        for load, count in LOADS.items():
            order = list(WAYS)
            shuffle.shuffle(order)
            with busy(count):
                for way in order:
                    times[load][way].append(workers[way].seconds(steps))
    for worker in workers.values():
        worker.end()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds; nothing is written")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work()
    sys.path.insert(0, str(Path(__file__).parent))
    from harness import show, write

    rounds, steps = (1, 1) if options.quick else (6, 2)
    before = os.getloadavg()[0]
    times = measure(rounds, steps)
    rows = [
        {
            "load": load,
            "way": way,
            "seconds per step": f"{statistics.median(taken):.2f}",
            "worst round": f"{max(taken):.2f}",
            "to spin": f"{statistics.median(a / b for a, b in zip(taken, ways['spin'], strict=True)):.2f}",
        }
        for load, ways in times.items()
        for way, taken in ways.items()
    ]
    title = f"a step with {THREADS} threads on {os.cpu_count()} cores"
    show(title, rows)
    if not options.quick:
        notes = f"{rounds} rounds of {steps} steps; medians, and a paired median of the ratio. Processes that wanted a "
        notes += f"core, of others before the start: {before:.1f}."
        print(write("threads", "python benchmarks/threads.py", {title: rows}, notes))


if __name__ == "__main__":
    main()
