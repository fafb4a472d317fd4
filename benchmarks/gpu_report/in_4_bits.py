"""A step of LoRA and DoRA on a base in nf4 by bitsandbytes, beside PEFT's QLoRA and QDoRA."""

from __future__ import annotations

from dataclasses import replace

from measures import describe
from quantised import steps
from variants import WIDTH_7B

from gpu_report.recipe import SMALL
from gpu_report.sheet import Sheet


def measure(sheet: Sheet) -> None:
    case = replace(SMALL if sheet.small else WIDTH_7B, quantised=True, accumulation=1)
    rounds = 1 if sheet.small else 8
    sheet.rows(describe(case), steps(case, rounds, measures_memory=not sheet.small))
