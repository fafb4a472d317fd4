"""Measures the cost of a training step: mmdora's adapters beside PEFT's, the frozen model and full fine-tuning.

    python benchmarks/step.py            # everything this machine can measure: table, plot, results/step_*.{json,md}
    python benchmarks/step.py --quick    # under a minute; the ratios are the last line

All variants share one base, one batch and one seed. They take turns, in a new order every round. A ratio is the median
over rounds of (variant / peer in the same round); times are process CPU time on a CPU, and wall time with
synchronisation on CUDA. `PEFT LoRA again` is the peer measured twice, so its distance from 1 shows the noise. A step is
forward, backward and AdamW. bf16 runs under autocast with adapters in fp32, as in the training loops of both. Memory is
measured for each variant in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

# Threads that spin while they wait would count as CPU time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from harness import RESULTS, show, write
from measures import describe, key, memory, norm_errors, profile, ratio, timings
from variants import GROWTH, PEER, SMALL, VARIANTS, WIDTH_7B, Case

CORE = (PEER, f"{PEER} again", "PEFT DoRA", "mmdora LoRA", "mmdora DoRA", "frozen floor")


def rows_of(times: dict[str, list[float]], memories: dict[str, float]) -> list[dict[str, Any]]:
    """A table with one row per variant: seconds, ratios to PEFT's LoRA of the same dropout and to the floor, memory."""
    rows = []
    for name in times:
        dropout = name.rpartition(" ")[2]
        peer = f"{PEER}, dropout {dropout}"
        bare = key("frozen floor", 0)
        row = {
            "variant": name,
            "seconds": f"{statistics.median(times[name]):.3f}",
            "/ PEFT LoRA": f"{ratio(times, name, peer):.3f}",
            "/ floor": f"{ratio(times, name, bare):.3f}" if bare in times else "",
        }
        if memories:
            there = name in memories and peer in memories
            row["peak MB"] = f"{memories[name]:,.0f}" if there else ""
            row["memory / PEFT LoRA"] = f"{memories[name] / memories[peer]:.3f}" if there else ""
        rows.append(row)
    return rows


def last_line(times: dict[str, list[float]]) -> str:
    own = [ratio(times, key("mmdora DoRA", d), key(PEER, d)) for d in (0, 0.05)]
    theirs = [ratio(times, key("PEFT DoRA", d), key("mmdora DoRA", d)) for d in (0, 0.05)]
    return (
        f"ours/peft-lora dropout0={own[0]:.3f} dropout05={own[1]:.3f} "
        f"peft-dora/ours dropout0={theirs[0]:.2f} dropout05={theirs[1]:.2f}"
    )


def plot(growth: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """Draw seconds over tokens and over rank, with one line per variant."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=False, layout="constrained")
    for axis, (label, points) in zip(axes, growth.items(), strict=True):
        for name in next(iter(points.values())):
            xs = list(points)
            ours = name.startswith("mmdora")
            style = {"linewidth": 2.2 if ours else 1.4, "linestyle": "-" if ours else "--", "marker": "o"}
            axis.plot(xs, [points[x][name] for x in xs], label=name, **style)
        axis.set(xscale="log", xlabel=label, xticks=xs, ylabel="seconds per step", ylim=(0, None))
        axis.set_xticklabels([f"{x:,}" for x in xs])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def quick() -> None:
    """Print the ratios of the committed table, measured on one layer in few rounds."""
    times = timings(GROWTH, (0, 0.05), (PEER, f"{PEER} again", "PEFT DoRA", "mmdora DoRA"), 5)
    show(f"{describe(GROWTH)}, 5 rounds", rows_of(times, {}))
    print(last_line(times))


def everything(rounds: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tables: dict[str, list[dict[str, Any]]] = {}
    growth: dict[str, dict[int, dict[str, float]]] = {"tokens": {}, "rank": {}}
    first = ""
    for case, dropouts, names, measures_memory in cases(device):
        times = timings(case, dropouts, names, rounds)
        wanted = [name for name in times if "again" not in name] if measures_memory else []
        memories = {name: memory(case, float(name.rpartition(" ")[2]), name.rpartition(",")[0]) for name in wanted}
        rows = rows_of(times, memories)
        tables[describe(case)] = rows
        show(describe(case), rows)
        medians = {n: statistics.median(times[key(n, 0)]) for n in names if "again" not in n}
        base = WIDTH_7B if device == "cuda" else GROWTH
        if replace(case, batch=base.batch) == base:
            growth["tokens"][case.tokens] = medians
        if replace(case, rank=base.rank) == base:
            growth["rank"][case.rank] = medians
        first = first or last_line(times)
    tables["norm against float64"] = norm_errors()
    show("norm against float64", tables["norm against float64"])
    name = f"step_{device}"
    RESULTS.mkdir(exist_ok=True)
    plot({label: {x: {n: v for n, v in points[x].items() if n in CORE} for x in sorted(points)}
          for label, points in growth.items()}, RESULTS / f"{name}.png")  # fmt: skip
    (RESULTS / f"{name}_profile.txt").write_text(profile(next(cases(device))[0]), encoding="utf-8")
    clock = "wall time" if device == "cuda" else "process CPU time, one thread where no other number is given"
    notes = (
        f"{rounds} rounds, {clock}; ratios are paired medians. How cost grows: `{name}.png`; where the rest of the "
        f"gap to the floor is: `{name}_profile.txt`."
    )
    print(write(name, "python benchmarks/step.py", tables, notes))
    print(first)


def cases(device: str) -> Iterator[tuple[Case, tuple[float, ...], tuple[str, ...], bool]]:
    """Yield (case, dropouts, variants, whether to measure memory), with the main case first."""
    both = (0, 0.05)
    if device == "cuda":
        yield WIDTH_7B, both, tuple(VARIANTS), True
        yield replace(WIDTH_7B, rank=384), both, CORE, True
        for rank in (16, 64, 256):
            yield replace(WIDTH_7B, rank=rank), both, CORE, False
        for times in (2, 4):
            yield replace(WIDTH_7B, batch=WIDTH_7B.batch * times, checkpointing=False), (0,), CORE, False
        yield replace(WIDTH_7B, checkpointing=True), both, CORE, True
        return
    yield SMALL, both, tuple(VARIANTS), True
    cores = len(os.sched_getaffinity(0))
    if cores > 1:
        yield replace(SMALL, threads=cores), both, tuple(VARIANTS), False
    for rank in (16, 64, 128, 384):
        yield replace(GROWTH, rank=rank), both, CORE, rank == 384
    yield replace(GROWTH, rank=256), (0,), CORE, False
    for times in (2, 4):
        yield replace(GROWTH, batch=SMALL.batch * times), (0,), CORE, False
    yield replace(GROWTH, dtype="bf16"), both, CORE, False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case, few rounds, nothing written")
    parser.add_argument("--rounds", type=int, default=30, help="rounds per case (default: 30)")
    options = parser.parse_args()
    quick() if options.quick else everything(options.rounds)


if __name__ == "__main__":
    main()
