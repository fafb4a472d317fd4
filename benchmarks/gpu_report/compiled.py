"""The step with the language model under `torch.compile`: graph breaks, seconds and losses beside eager ones."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from measures import describe, seconds
from torch._dynamo.utils import counters
from variants import PEER, WIDTH_7B, Case, Step, build

from gpu_report.recipe import DROPOUT, SMALL
from gpu_report.sheet import Sheet

NAMES = ("mmdora DoRA", "mmdora LoRA", PEER)


def measure(sheet: Sheet) -> None:
    case = replace(SMALL, checkpointing=False) if sheet.small else replace(WIDTH_7B, layers=4, batch=4, accumulation=1)
    base = build(case)
    for name in NAMES:
        _row(sheet, name, base, case, 1 if sheet.small else 5)


def _row(sheet: Sheet, name: str, base: Any, case: Case, rounds: int) -> None:
    torch._dynamo.reset()
    counters.clear()
    eager, compiled = Step(name, base, case, 0.0), Step(name, base, case, 0.0)
    # A CPU would need a C++ compiler and minutes; whether the graph is whole shows without generated code too.
    compiled.model.get_submodule(_language(compiled.model)).compile(backend="aot_eager" if sheet.small else "inductor")
    losses = eager(), compiled()
    begun = time.monotonic()
    compiled()
    again = time.monotonic() - begun
    times: dict[str, list[float]] = {"eager": [], "compiled": []}
    for _ in range(rounds):
        times["eager"].append(seconds(eager, case.device))
        times["compiled"].append(seconds(compiled, case.device))
    ratio = statistics.median(a / b for a, b in zip(times["compiled"], times["eager"], strict=True))
    sheet.row(
        describe(case),
        variant=name,
        graph_breaks=sum(counters["graph_break"].values()),
        eager_seconds=f"{statistics.median(times['eager']):.3f}",
        compiled_seconds=f"{statistics.median(times['compiled']):.3f}",
        ratio=f"{ratio:.3f}",
        losses_apart=f"{abs(losses[0] / losses[1] - 1):.1e}",
    )
    print(f"{name}: the second compiled step took {again:.1f} s; dropout {DROPOUT} is not measured here")
    for reason, count in counters["graph_break"].items():
        sheet.note(f"{name}: {count} graph breaks, {reason.splitlines()[0]}")


def _language(model: Any) -> str:
    """The name of the language model, which PEFT's wrapper changes."""
    return next(name for name, _ in model.named_modules() if name.endswith("language_model"))
