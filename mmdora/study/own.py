"""`mmdora study --data MINE`: a study of a user's own records that fits into a given time, and what it advises."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.evaluate.source import find
from mmdora.files import read_json, sha256, write_json
from mmdora.models.locate import bundled
from mmdora.records.card import CARD
from mmdora.records.reader import Records, read_records
from mmdora.records.row import Row
from mmdora.study.cells import Group
from mmdora.study.data import FACTS, opened, write_splits
from mmdora.study.design import METHODS, TITLES, Expected, Grid, Rates, Study
from mmdora.study.findings import OnTask, pairs
from mmdora.study.results import Results
from mmdora.study.run import Runner
from mmdora.study.tasks import StudyTask

OWN = "own"
RANK = 8
OTHER_RANKS = (2, 32)
"""Ranks that are tried in place of `RANK`, a factor of four below and above it."""
SEEDS = (0, 1, 2)
TINY_RATES, LARGE_RATES = (3e-4, 3e-2), (1e-5, 1e-3)
"""The lowest and the highest peak rate for the bundled bases of two million parameters, and for any other base."""
MANY, FEW = 5, 3
"""Rates of the grid, if the budget has room for them, and if not. The few are every second one of the many."""
EPOCHS, MOST_STEPS, BATCH = 2, 300, 8
PICTURES = 400
"""The most pictures of the validation split and of the test split."""


@dataclass(frozen=True)
class OwnStudy:
    """What a user asks for.

    Attributes:
        data: a folder of `mmdora prep`, or a file of records.
        methods: keys of `design.METHODS`.
        seconds: the budget.
    """

    data: Path
    methods: Sequence[str]
    seconds: float
    base: str
    out: Path
    task: str | None = None


def seconds_of(budget: str) -> float:
    """The seconds of a time such as `2h`, `90m` or `1h30m`.

    Raises:
        MmdoraError: it is none.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?", budget)
    found = 3600 * float(match[1] or 0) + 60 * float(match[2] or 0) if match else 0.0
    if not found:
        raise MmdoraError(f"--budget {budget}: give hours or minutes, such as 2h, 90m or 1h30m")
    return found


def methods_of(text: str) -> list[str]:
    """The methods of a list such as `lora,dora`.

    Raises:
        MmdoraError: one is unknown, or there are not at least two different ones.
    """
    names = text.split(",")
    for name in names:
        if name not in METHODS:
            raise MmdoraError(f"--methods {text}: no method {name!r}; there are {', '.join(METHODS)}")
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise MmdoraError(f"--methods {text}: name two or more different methods, such as lora,dora")
    return names


def study_own(asked: OwnStudy) -> str:
    """Run as much of the study as the budget allows, and give the sentence of advice.

    First every method gets the same rates at one seed, then its best rate gets more seeds; with the time that is left
    the best method is tried at other ranks and in single places.

    Raises:
        MmdoraError: the data cannot be split; or the budget has no room for the rates of all methods.
    """
    began = time.monotonic()
    task = _task(asked)
    runner = Runner(asked.out, tasks={OWN: task}, until=began + asked.seconds)
    runner.given[OWN] = opened(asked.out / "splits" / OWN)
    first = _design(asked, MANY)
    middle = Group(first, asked.base, task, first.compare[0][0]).cell(first.rates.values[MANY // 2], SEEDS[0])
    runner.one(first, middle, runner.results)
    fit = int((asked.seconds - (time.monotonic() - began)) / runner.seconds_a_cell) + 1
    count = MANY if fit >= len(asked.methods) * (MANY + len(SEEDS) - 1) else FEW
    runner.say(f"a cell takes {runner.seconds_a_cell:.0f} s, so {fit} fit into the budget; {count} rates per method")
    if fit < len(asked.methods) * FEW:
        raise MmdoraError(
            f"--budget: {len(asked.methods)} methods at {FEW} rates are {len(asked.methods) * FEW} cells of "
            f"{runner.seconds_a_cell:.0f} s, and {fit} fit; give more time, or fewer methods"
        )
    study = _design(asked, count)
    results = runner.run(study)
    best = _best(study, task, results)
    if best is None:
        raise MmdoraError("--budget: the time was up before every method had its rates; the same command goes on")
    return advice(study, task, results, best, _others(asked, runner, task, study, best))


def _design(asked: OwnStudy, count: int) -> Study:
    low, high = TINY_RATES if asked.base in bundled() else LARGE_RATES
    grid = Grid(methods=tuple(asked.methods), ranks=(RANK,))  # pyright: ignore[reportArgumentType]
    names = list(grid.arms())
    return Study(
        title=f"{' and '.join(TITLES[name] for name in asked.methods)} on {asked.data}",
        question="Which method answers more of these questions right?",
        bases=(asked.base,),
        tasks=(OWN,),
        grid=grid,
        compare=tuple((names[0], name) for name in names[1:]),
        rates=Rates(low=low, high=high, count=count),
        seeds=SEEDS,
        expected=Expected(differing=0.2, seed_spread=0.02),
    )


def _best(study: Study, task: StudyTask, results: Results) -> tuple[str, float] | None:
    """The arm with the best validation score at its chosen rate, and that rate; the earlier of equal arms."""
    found = []
    for arm in study.all_arms:
        group = Group(study, study.bases[0], task, arm)
        rate = group.chosen(results)
        if rate is None:
            return None
        found.append((results.cells[group.cell(rate, study.seeds[0]).key]["validation"], arm, rate))
    _, arm, rate = max(found, key=lambda one: one[0])
    return arm, rate


def _others(asked: OwnStudy, runner: Runner, task: StudyTask, study: Study, best: tuple[str, float]) -> list[OnTask]:
    """The best arm against other ranks and places at its rate, as far as the time allows; the other minus the best."""
    arm, rate = best
    how = study.all_arms[arm]["language"]
    tries = {f"{place} alone": {place: how} for place in ("vision", "language")}
    if how.rank is not None:
        tries |= {f"rank {rank}": {"all": replace(how, rank=rank)} for rank in OTHER_RANKS}
    design = replace(
        study,
        title="other ranks and places",
        grid=None,
        arms={arm: {"all": how}, **tries},
        compare=tuple((arm, name) for name in tries),
        rates=Rates(low=rate, high=rate, count=1),
        seeds=SEEDS[:1],
    )
    results = runner.run(design)
    found = pairs(design, {OWN: task}, results, shared=False)
    return [replace(pair.tasks[0], task=pair.second) for pair in found if pair.tasks]


def advice(study: Study, task: StudyTask, results: Results, best: tuple[str, float], others: list[OnTask]) -> str:
    """One sentence: which method, rank and place to take, at which rate, and how sure that is."""
    arm, rate = best
    first = next(iter(study.all_arms))
    duels = {pair.second: pair.tasks[0] for pair in pairs(study, {OWN: task}, results, shared=False) if pair.tasks}
    taken, why = arm, ""
    if arm == first:
        said = [f"{name} {_points(one)}" for name, one in duels.items()]
        why = f"against it {', '.join(said)}"
    else:
        one = duels[arm]
        why = f"{_points(one)} over {first}"
        if not one.difference.seen:
            taken = first
            rate = one.first.rate
            why = f"no difference to {arm} was seen, {_points(one)}, and it is the simpler"
    score = next(iter(duels.values()))
    shown = score.first if taken == first else duels[taken].second
    better = [other.task for other in others if other.difference.seen and other.difference.value > 0]
    place = f"; {' and '.join(better)} did better still (one seed)" if better else ""
    tried = f"; of {', '.join(other.task for other in others)} none was seen to do better (one seed)" if others else ""
    seeds = min(one.difference.seeds for one in duels.values())
    return (
        f"Take {taken} on all places at a peak rate of {rate:g}: {100 * shown.score:.1f}% of the test questions "
        f"({why}; 95% intervals over {seeds} {'seed' if seeds == 1 else 'seeds'} and the questions){place or tried}."
    )


def _points(one: OnTask) -> str:
    low, high = one.difference.interval
    return f"{100 * one.difference.value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


def _task(asked: OwnStudy) -> StudyTask:
    """The user's records as a task, with their splits below `out`.

    Raises:
        MmdoraError: the folder there is of other data; or there are too few pictures.
    """
    train, held_out, name = _records(asked)
    steps = max(20, min(MOST_STEPS, EPOCHS * len(train) // BATCH))
    digest = sha256(f"{sha256(train.path)} {len(held_out)} {name}".encode())
    task = StudyTask(OWN, str(asked.data), name, OWN, lambda out: None, len(train), steps, BATCH, PICTURES, PICTURES)
    folder = asked.out / "splits" / OWN
    noted = folder / "source.json"
    if (folder / FACTS).is_file():
        if read_json(noted, "note on the data")["digest"] != digest:
            raise MmdoraError(f"{asked.out}: holds a study of other data; give another --out")
        return task
    folder.mkdir(parents=True, exist_ok=True)
    write_json(noted, {"data": str(asked.data), "digest": digest})
    write_splits(task, train, held_out, folder)
    return task


def _records(asked: OwnStudy) -> tuple[Records, Sequence[Row], str]:
    """Records to train on, held-out rows, and the name of the task of `mmdora eval`."""
    found = find(asked.data, asked.task)
    if asked.data.is_dir() and (asked.data / "train.jsonl").is_file() and found.split != "train":
        return read_records(asked.data / "train.jsonl"), list(found.records), found.task.name
    raise MmdoraError(
        f"{asked.data}: a study needs a folder with {CARD}, train.jsonl and a split that is held out; "
        "`mmdora prep folder … --held-out 0.2` makes one"
    )
