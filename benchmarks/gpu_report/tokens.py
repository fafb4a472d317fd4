"""Tokens per second of an answer: merged, with an adapter beside the weights, PEFT's adapters, and a base in 4 bits."""

from __future__ import annotations

import copy
import gc
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from decode import MERGED, TOKENS, asking
from measures import describe, interleaved
from variants import Case, batch_of, build, ours, peft

import mmdora
from gpu_report.recipe import RECIPE, SMALL
from gpu_report.sheet import Sheet

TABLE = "tokens per second, batch 1, with the key-value cache"


def measure(sheet: Sheet) -> None:
    case = replace(SMALL, batch=1, checkpointing=False) if sheet.small else replace(RECIPE, batch=1, length=640)
    case = replace(case, checkpointing=False)
    rounds = 1 if sheet.small else 5
    base = build(case)
    ways: dict[str, Any] = {
        "mmdora LoRA": ours(base, case, 0.0, "lora"),
        "mmdora DoRA": ours(base, case, 0.0, "dora"),
        "PEFT LoRA": peft(base, case, 0.0, dora=False),
        "PEFT DoRA": peft(base, case, 0.0, dora=True),
    }
    ways[MERGED] = mmdora.merge(copy.deepcopy(ways["mmdora DoRA"]))
    _table(sheet, case, ways, rounds, "weights in bf16")
    del base, ways
    gc.collect()
    packed = replace(case, quantised=True)
    base = build(packed)
    _table(sheet, packed, {"the base alone": base, "mmdora DoRA": ours(base, packed, 0.0, "dora")}, rounds, "nf4")


def _table(sheet: Sheet, case: Case, ways: Mapping[str, Any], rounds: int, weights: str) -> None:
    inputs = {name: value for name, value in batch_of(case, next(iter(ways.values()))).items() if name != "labels"}
    asks: dict[str, Any] = {}
    for name, model in ways.items():
        model.eval()
        asks[name] = asking(name, model, inputs, 1 + TOKENS)
        asks[f"{name}, first"] = asking(name, model, inputs, 1)
    times = interleaved(asks, rounds, case.device, describe(case))
    for name in ways:
        pairs = zip(times[name], times[f"{name}, first"], strict=True)
        each = statistics.median((whole - first) / TOKENS for whole, first in pairs)
        sheet.row(
            f"{TABLE}, {describe(case)}",
            way=f"{name}, {weights}",
            tokens_per_second=f"{1 / each:.1f}",
            first_token_ms=f"{1000 * statistics.median(times[f'{name}, first']):.0f}",
        )
