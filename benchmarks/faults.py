"""Kills training with SIGKILL, resumes it, and compares it with a run that was not disturbed.

    python benchmarks/faults.py               # 20 kills: table, results/faults.{json,md}
    python benchmarks/faults.py --kills 4     # the short form, under a minute on one core; writes nothing

Every process runs `mmdora train CONFIG` like `python -m mmdora`, but first `killed.py` makes it record every batch and
every file operation of a save. Kills inside a save are exact: the process ends itself with SIGKILL right before a given
file operation. The other kills come from outside, at a random moment of a random step. A run is killed up to five
times, and then resumed until it is complete. Processes are fresh interpreters; in the short form they are forks of one
that has imported torch.

Equal means bit-equal: every logged loss, gradient norm, learning rate and evaluation loss, every batch in its order,
the final adapter, and the state of optimizer, schedule and random numbers at the end. The number of loader processes
changes from one resume to the next; the undisturbed run has none.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml
from killed import Kill, Note, within

from mmdora.files import sha256

FAMILIES = {"llava": "tiny-llava", "vl-bart": "tiny-vlbart"}
WORKERS = (0, 0, 2, 2)  # Numbers of loader processes; the processes of a run take them in turn.
STEPS, SAVE_EVERY = 24, 4  # An epoch has 8 steps (16 with two tasks), so saves lie within epochs and at their ends.
ROWS, HELD_OUT = 31, range(31, 35)  # Scenes by number. 31 rows leave the last batch of an epoch unfilled.
PER_RUN = 5  # Most kills of one run.
FULL = 20  # Kills in the full form; only its result is written.
FIRST = 2 * SAVE_EVERY  # The first step whose save is disturbed. A complete checkpoint exists before it.
LAST = STEPS - SAVE_EVERY  # The last step whose save is disturbed, so that there are steps left to resume.


class Run:
    """A run folder, and the processes that work on it in turn."""

    def __init__(self, context: Any, folder: Path, family: str, records: Path, held_out: Path):
        self.context, self.processes = context, 0
        self.folder, self.record, self.told = folder / "run", folder / "record.tsv", folder / "told"
        folder.mkdir(parents=True)
        self.config = folder / "config.yaml"
        adapted = {"method": "dora", "rank": 4, "dropout": 0.1}
        files, modalities = {"train": str(records), "eval": str(held_out)}, ("vision", "projector", "language")
        data: dict[str, Any] = files
        if family == "vl-bart":  # Its tower stays frozen, and each of its batches holds a single task.
            modalities = modalities[1:]
            data = {"tasks": {"vqa": files, "caption": files}, "feature_cache": str(folder / "features")}
        tree = {
            "model": {"base": FAMILIES[family]},
            "adapt": dict.fromkeys(modalities, adapted),
            "data": data,
            "training": {"output": str(self.folder), "steps": STEPS, "batch_size": 2, "accumulation": 2, "lr": 1e-3,
                         "log_every": 3, "eval_every": SAVE_EVERY, "save_every": SAVE_EVERY},
        }  # fmt: skip
        self.config.write_text(yaml.safe_dump(tree))

    def start(self, workers: int, kill: Kill | None = None) -> BaseProcess:
        """Start the next process of this run; every process but the first resumes."""
        arguments = ["train", str(self.config), "--data.workers", str(workers)]
        arguments += ["--resume"] if self.processes else []
        self.processes += 1
        process = self.context.Process(target=within, args=(arguments, self.told, self.record, kill))
        process.start()
        return process

    def finish(self, workers: int) -> None:
        process = self.start(workers)
        process.join()
        if process.exitcode:
            raise SystemExit(f"mmdora train ended with {process.exitcode}:\n{self.told.read_text()[-2000:]}")

    def kill(self, kill: Kill, workers: int, chance: random.Random) -> str:
        """Start a process and kill it; gives the step that it had reached.

        Raises:
            SystemExit: if the run was over before the kill, or if there was no complete checkpoint.
        """
        seen = len(self.notes())
        process = self.start(workers, kill)
        if kill.before is None:
            while process.is_alive() and all(note.step < kill.step for note in self.notes()[seen:]):
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.25))
            process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL or (self.folder / "complete.json").exists():
            raise SystemExit(f"not killed ({kill}): exit code {process.exitcode}\n{self.told.read_text()[-2000:]}")
        if not any(self.folder.glob("checkpoint-*/manifest.json")):
            raise SystemExit(f"killed ({kill}) before the first checkpoint")
        return f"step {self.notes()[-1].step}"

    def notes(self) -> list[Note]:
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [
            Note(int(process), int(step), kind, what)
            for process, step, kind, what in (line.split("\t") for line in lines)
        ]

    def results(self) -> dict[str, Any]:
        """The results by which two runs are compared."""
        speed = ("runtime", "per_second", "_s")  # Times differ: samples_per_s, forward_s and the like are left out.
        entries = map(json.loads, (self.folder / "log.jsonl").read_text().splitlines())
        log = [{k: v for k, v in entry.items() if not any(word in k for word in speed)} for entry in entries]
        names = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors")
        files = [self.folder / f"checkpoint-{STEPS}" / name for name in names]
        files.append(self.folder / "adapter" / "adapter_model.safetensors")
        return {"log": log, "order": self.order(), "files": [sha256(file) for file in files]}

    def order(self) -> dict[int, list[str]]:
        """Step -> its batches. If a process got other batches than the process before it, the list holds both."""
        order: dict[int, list[str]] = {}
        batches = (note for note in self.notes() if note.kind == "batch")
        for (_, step), notes in itertools.groupby(batches, key=lambda note: (note.process, note.step)):
            batches_now = [note.what for note in notes]
            known = order.setdefault(step, batches_now)
            shorter, longer = sorted((known, batches_now), key=len)  # A kill may have cut the step short.
            order[step] = longer if longer[: len(shorter)] == shorter else [*known, *batches_now]
        return order


def draw_records(path: Path, numbers: range) -> Path:
    """Write records with one question each about drawn scenes, one scene for each number."""
    from mmdora.data_prep import scenes
    from mmdora.records.reader import write_records
    from mmdora.records.record import qa_record

    drawn = []
    for number in numbers:
        chance = random.Random(number)
        things, picture = scenes.scene(chance)
        picture.save(path.parent / f"{number}.png")
        drawn.append(qa_record(f"scene-{number}", f"{number}.png", scenes.conversation(chance, things)[:1]))
    write_records(path, drawn)
    return path


def plan(kills: int, operations: list[str], chance: random.Random) -> list[list[Kill]]:
    """The kills of each run: three of five lie inside a save, and are spread evenly over its file operations."""
    sizes = [len(range(start, kills, math.ceil(kills / PER_RUN))) for start in range(math.ceil(kills / PER_RUN))]
    inside = [round(size * 0.6) for size in sizes]
    total = sum(inside)
    places = [operations[int((number + 0.5) / total * len(operations))] for number in range(total)]
    chance.shuffle(places)
    runs = []
    for size, saves in zip(sizes, inside, strict=True):
        steps = chance.sample(range(FIRST, LAST + 1, SAVE_EVERY), saves)
        run = [Kill(step, places.pop()) for step in steps]
        run += [Kill(chance.randrange(SAVE_EVERY + 1, LAST + 2), None) for _ in range(size - saves)]
        runs.append(sorted(run, key=lambda kill: kill.step))
    return runs


def measure(context: Any, kills: int, seed: int, folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The table of kills, and the number of kills after which the run was equal to the undisturbed one."""
    files = draw_records(folder / "records.jsonl", range(ROWS)), draw_records(folder / "held-out.jsonl", HELD_OUT)
    chance, rows, equal = random.Random(seed), [], 0
    undisturbed: dict[str, dict[str, Any]] = {}
    operations: list[str] = []
    for family in list(FAMILIES)[: math.ceil(kills / PER_RUN)]:  # Runs take the families in turn.
        run = Run(context, folder / f"{family}-undisturbed", family, *files)
        run.finish(0)
        undisturbed[family] = run.results()
        operations = list(dict.fromkeys(n.what for n in run.notes() if (n.step, n.kind) == (LAST, "save")))
    for number, planned in enumerate(plan(kills, operations, chance)):
        family = list(FAMILIES)[number % len(FAMILIES)]
        run = Run(context, folder / f"{family}-{number}", family, *files)
        mine = []
        for index, kill in enumerate(planned):
            workers = _workers(number, index)
            reached = run.kill(kill, workers, chance)
            mine.append({"kill": str(kill), "run": f"{family} {number}", "workers": workers, "reached": reached})
            print(f"{family} {number}: killed: {kill}", file=sys.stderr)
        run.finish(_workers(number, len(planned)))
        results = run.results()
        differs = [key for key, value in undisturbed[family].items() if results[key] != value]
        equal += 0 if differs else len(mine)
        rows += [row | {"then": ", ".join(differs) + " differ" if differs else "equal"} for row in mine]
    return rows, equal


def _workers(run: int, process: int) -> int:
    return WORKERS[(2 * run + process) % len(WORKERS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=FULL, help=f"how many (default: {FULL}); fewer write no result")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    options = parser.parse_args()
    short = options.kills < FULL
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    os.environ["PYTHONWARNINGS"] = (
        "ignore::UserWarning:multiprocessing.resource_tracker"  # A killed process leaves its resources behind.
    )
    with tempfile.TemporaryDirectory(prefix="mmdora-faults-") as folder:
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder, "cache"))
        if short:
            import mmdora.train  # noqa: F401 (the forks inherit it)
        context = multiprocessing.get_context("fork" if short else "spawn")
        rows, equal = measure(context, options.kills, options.seed, Path(folder))
    from harness import show, write

    show(f"{options.kills} kills", rows)
    if not short:
        inside = sum(row["kill"].startswith("save") for row in rows)
        notes = f"{inside} kills inside a save. {STEPS} steps, DoRA with dropout 0.1, accumulation 2, one thread."
        print(write("faults", "python benchmarks/faults.py", {"kills": rows}, notes))
    print(f"kills={options.kills} equal={equal}")
    sys.exit(equal != options.kills)


if __name__ == "__main__":
    main()
