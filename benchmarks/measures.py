"""Functions that measure for `step.py` and `decode.py`: times in turns, peak memory in a process, time by operator."""

from __future__ import annotations

import gc
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from variants import NO_DROPOUT, PEER, Case, Step, build


def seconds(step: Callable[[], object], device: str) -> float:
    """Seconds of one call: process CPU time, or on CUDA wall time until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
        begun = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - begun
    begun = time.process_time()
    step()
    return time.process_time() - begun


def interleaved(
    steps: Mapping[str, Callable[[], object]], rounds: int, device: str, label: str
) -> dict[str, list[float]]:
    """Name of each variant -> its seconds in every round. Two more rounds come first to warm up and do not count."""
    order, times = list(steps), {name: [] for name in steps}
    shuffle = random.Random(0)
    for number in range(-2, rounds):
        shuffle.shuffle(order)
        for name in order:
            taken = seconds(steps[name], device)
            if number >= 0:
                times[name].append(taken)
        if sys.stderr.isatty():
            print(f"\r{label}: round {max(number + 1, 0)} of {rounds}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return times


def ratio(times: dict[str, list[float]], name: str, peer: str) -> float:
    """The median over rounds of the ratio name / peer within a round."""
    return statistics.median(a / b for a, b in zip(times[name], times[peer], strict=True))


def timings(case: Case, dropouts: tuple[float, ...], names: tuple[str, ...], rounds: int) -> dict[str, list[float]]:
    """`key(name, dropout)` -> seconds in every round."""
    base = build(case)
    wanted = [(name, dropout) for dropout in dropouts for name in names if not (dropout and name in NO_DROPOUT)]
    steps = {key(name, dropout): Step(name, base, case, dropout) for name, dropout in wanted}
    times = interleaved(steps, rounds, case.device, describe(case))
    del steps, base
    gc.collect()
    return times


def key(name: str, dropout: float) -> str:
    return f"{name}, dropout {dropout:g}"


def memory(case: Case, dropout: float, name: str) -> float:
    """Peak memory of two steps of a variant beyond the base, in MB, measured in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory, (case, dropout, name))


def _memory(case: Case, dropout: float, name: str) -> float:
    base = build(case)
    if case.device == "cuda":
        level = torch.cuda.memory_allocated()
        step = Step(name, base, case, dropout)
        for _ in range(2):
            step()
        return (torch.cuda.max_memory_allocated() - level) / 1e6
    Step("frozen floor", base, replace(case, batch=1), 0.0)()  # Libraries allocate memory once, which must not count.
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # This makes Linux forget the peak so far.
    level = _peak()
    step = Step(name, base, case, dropout)
    for _ in range(2):
        step()
    return (_peak() - level) / 1e6


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def describe(case: Case) -> str:
    size = f"hidden {case.hidden}, {case.layers} layer{'s' * (case.layers > 1)}, {case.tokens:,} tokens"
    words = f"{case.device} {case.dtype}, {size}, r {case.rank}"
    words += f", {case.threads} threads" * (case.threads > 1) + ", language model in nf4" * case.quantised
    return words + (", activation checkpointing" if case.checkpointing else "")


def norm_errors() -> list[dict[str, Any]]:
    """Relative error of the factored norm against float64 in the worst row, for several sizes of s B A against W0."""
    from mmdora.ops.norm import row_norm, squared_norm

    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for size in (0.01, 0.1, 1.0):
            torch.manual_seed(0)
            weight = (torch.randn(1024, 1024) / 32).to(dtype)
            A, B = torch.randn(64, 1024) / 32, torch.randn(1024, 64)
            B *= size * weight.double().norm(dim=1, keepdim=True) / (B.double() @ A.double()).norm(dim=1, keepdim=True)
            exact = (weight.double() + B.double() @ A.double()).norm(dim=1)
            error = ((row_norm(weight, A, B, 1.0, squared_norm(weight)) - exact).abs() / exact).max()
            rows.append({"base": str(dtype).removeprefix("torch."), "|sBA| / |W0|": size, "worst row": f"{error:.1e}"})
    return rows


def profile(case: Case, rounds: int = 9) -> str:
    """A text that shows where a step of DoRA takes longer than one of the frozen floor: self time by operator."""
    from torch.profiler import ProfilerActivity

    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if case.device == "cuda" else [])
    names, base = ("frozen floor", PEER, "mmdora DoRA"), build(case)
    steps = {name: Step(name, base, case, 0.0) for name in names}
    times: dict[str, dict[str, list[float]]] = {}
    calls: dict[str, dict[str, int]] = {}
    for number in range(-2, rounds):
        for name, step in steps.items():
            with torch.profiler.profile(activities=kinds) as profiler:
                step()
            for entry in profiler.key_averages() if number >= 0 else ():
                took = entry.self_device_time_total if case.device == "cuda" else entry.self_cpu_time_total
                times.setdefault(entry.key, {}).setdefault(name, []).append(took / 1000)
                calls.setdefault(entry.key, {})[name] = entry.count
    spent = {
        op: {name: statistics.median(milliseconds) for name, milliseconds in by.items()} for op, by in times.items()
    }
    shown = sorted(spent, key=lambda op: -max(spent[op].values()))[:24]
    head = f"{'self ms per step (calls)':<44}" + "".join(f"{name:>22}" for name in names) + f"{'DoRA - floor':>14}"
    lines = [f"One step, {describe(case)}, dropout 0, torch.profiler, by turns, medians of {rounds} rounds", "", head]
    for op in [*shown, "all"]:
        values = [sum(s.get(n, 0) for s in spent.values()) if op == "all" else spent[op].get(n, 0.0) for n in names]
        counts = ["" if op == "all" else f" ({calls[op].get(n, 0)})" for n in names]
        cells = "".join(f"{f'{v:.2f}{c}':>22}" for v, c in zip(values, counts, strict=True))
        lines.append(f"{op[:43]:<44}{cells}{values[-1] - values[0]:>14.2f}")
    return "\n".join(lines) + "\n"
