"""The step of `configs/llava_1.5_7b_dora.yaml` with random weights made on the device, beside PEFT's LoRA and DoRA.

First the recipe's own step, as `mmdora train` makes it (the projector trained whole, the loss in chunks), against the
estimate of `mmdora inspect`. Then the adapters of the language model alone, in turns on one base, with the same loss:
seconds, peak, and how often the host waits for the device.
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from dataclasses import replace
from typing import Any

import torch
from measures import describe, seconds
from memory import Measured
from memory import measure as memory_of_a_step
from variants import PEER, Case, Step, build

from gpu_report.sheet import Sheet

RECIPE = Case(
    hidden=4096,
    intermediate=11008,
    layers=32,
    batch=16,
    length=2048,
    vocabulary=32064,
    large_tower=True,
    rank=128,
    dtype="bf16",
    device="cuda",
    checkpointing=True,
)
SMALL = Case(hidden=128, intermediate=256, layers=1, batch=2, length=32, rank=4, dtype="bf16", checkpointing=True)
DROPOUT = 0.05
AGAIN = f"{PEER} again"
MAIN = (PEER, AGAIN, "PEFT DoRA", "mmdora LoRA", "mmdora DoRA")
AT_384 = (PEER, "PEFT DoRA", "mmdora DoRA")
GOALS = "goals"


def measure(sheet: Sheet) -> None:
    case = SMALL if sheet.small else RECIPE
    _against_the_estimate(sheet, case)
    for rank, names, rounds, most in ((case.rank, MAIN, 3, 90), (3 * case.rank, AT_384, 2, 45)):
        beside_peft(sheet, replace(case, rank=rank), names, 1 if sheet.small else rounds, most, goals=names is MAIN)
        _forget()


def _against_the_estimate(sheet: Sheet, case: Case) -> None:
    asked = Measured("dora", True, rank=case.rank, dropout=DROPOUT, case=case, tower=False)
    found = memory_of_a_step(asked)
    _forget()
    sheet.row(
        f"the recipe's own step, {describe(case)}",
        seconds=f"{found['seconds']:.3f}",
        **{"peak, GiB": f"{found['measured'] / 2**30:.2f}", "estimate, GiB": f"{found['estimate'] / 2**30:.2f}"},
        **{"estimate / peak": f"{found['estimate'] / found['measured']:.3f}"},
    )


def beside_peft(sheet: Sheet, case: Case, names: tuple[str, ...], rounds: int, most: float, *, goals: bool) -> None:
    """Rounds in turns, as many as `most` seconds allow; the table is written after each round."""
    base = build(case)
    _forget()
    own = sum(t.nbytes for t in {id(t): t for t in (*base.parameters(), *base.buffers())}.values())
    steps = {name: Step(name, base, case, DROPOUT) for name in names}
    for step in steps.values():
        step()
    waits = {name: _waits(step) if goals and case.device == "cuda" else "" for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in names}
    peaks = dict.fromkeys(names, 0)
    end = time.monotonic() + most
    for number in range(rounds):
        if number and time.monotonic() > end:
            break
        for name, step in steps.items():
            held = own + _held(step)
            if case.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                held -= torch.cuda.memory_allocated()
            times[name].append(seconds(step, case.device))
            peaks[name] = held + torch.cuda.max_memory_allocated() if case.device == "cuda" else 0
        rows = [_row(name, times, peaks, waits) for name in names]
        sheet.rows(f"{describe(case)}, dropout {DROPOUT}, {number + 1} rounds", rows)
        if number:
            sheet.drop(f"{describe(case)}, dropout {DROPOUT}, {number} rounds")
        if goals:
            sheet.rows(GOALS, _goals(times, peaks))


def _row(name: str, times: dict[str, list[float]], peaks: dict[str, int], waits: dict[str, Any]) -> dict[str, Any]:
    row = {"variant": name, "seconds": f"{statistics.median(times[name]):.3f}"}
    row["/ PEFT LoRA"] = f"{_ratio(times, name, PEER):.3f}"
    row["peak, GiB"] = f"{peaks[name] / 2**30:.2f}" if peaks[name] else "not on a CPU"
    row["memory / PEFT LoRA"] = f"{peaks[name] / peaks[PEER]:.3f}" if peaks[PEER] else ""
    return row | {"waits for the device": waits[name]}


def _goals(times: dict[str, list[float]], peaks: dict[str, int]) -> list[dict[str, str]]:
    ours = "mmdora DoRA"
    found = [
        ("time of mmdora's DoRA / PEFT's LoRA", "at most 1.00", _ratio(times, ours, PEER), 1.0, True),
        ("time of PEFT's DoRA / mmdora's DoRA", "at least 2.0", _ratio(times, "PEFT DoRA", ours), 2.0, False),
    ]
    if peaks[PEER]:
        found.append(("memory of mmdora's DoRA / PEFT's LoRA", "at most 1.00", peaks[ours] / peaks[PEER], 1.0, True))
    return [
        {"what": what, "goal": goal, "measured": f"{value:.3f}", "met": "yes" if (value <= bound) is below else "no"}
        for what, goal, value, bound, below in found
    ]


def _ratio(times: dict[str, list[float]], name: str, peer: str) -> float:
    return statistics.median(a / b for a, b in zip(times[name], times[peer], strict=True))


def _waits(step: Step) -> int:
    """How often the host waits for the device in a step."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in told)


def _held(step: Step) -> int:
    """Bytes of what trains and of the optimizer's state of one variant."""
    states = step.optimizer.state.values() if step.optimizer is not None else ()
    return sum(p.nbytes for p in step.trained) + sum(
        value.nbytes for state in states for value in state.values() if isinstance(value, torch.Tensor)
    )


def _forget() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
