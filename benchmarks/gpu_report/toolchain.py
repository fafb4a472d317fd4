"""What is installed, whether Triton's kernels can be launched, and whether `mm(out_dtype)` sums in fp32."""

from __future__ import annotations

import shutil
import sysconfig
import time
from datetime import date
from pathlib import Path

import torch

from gpu_report.page import FACTS
from gpu_report.sheet import Sheet
from mmdora.env import collect
from mmdora.ops import backend
from mmdora.ops.products import mm


def measure(sheet: Sheet) -> None:
    device = torch.device("cpu" if sheet.small else "cuda")
    sheet.row(FACTS, what="date", value=date.today().isoformat())
    for name, value in collect().items():
        sheet.row(FACTS, what=name, value=value)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        sheet.row(FACTS, what="compute capability", value=".".join(map(str, torch.cuda.get_device_capability())))
        sheet.row(FACTS, what="free on the device", value=f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB")
    table = "what the kernels need"
    sheet.row(table, what="C compiler", found=next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), "none"))
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    sheet.row(table, what="Python.h", found="yes" if header.is_file() else "no")
    begun = time.perf_counter()
    problem = backend.problem(device)
    took = f"{time.perf_counter() - begun:.1f} s"
    launched = "no device" if device.type == "cpu" else problem or f"works, {took}"
    sheet.row(table, what="launch of a kernel", found=launched)
    _products(sheet, device)


def _products(sheet: Sheet, device: torch.device) -> None:
    """`mm` of two bf16 matrices in fp32, against float64 and against a product of fp32 copies."""
    rows, inner, columns = (64, 96, 32) if sheet.small else (11008, 4096, 4096)
    torch.manual_seed(0)
    a, b = (torch.randn(shape, device=device).bfloat16() for shape in ((rows, inner), (inner, columns)))
    exact = a.double() @ b.double()
    ways = {
        "mm(out_dtype=fp32)": lambda: mm(a, b, torch.float32),
        "fp32 copies": lambda: a.float() @ b.float(),
        "bf16": lambda: a @ b,
    }
    for name, way in ways.items():
        found = way()
        error = float((found.double() - exact).abs().max() / exact.abs().max())
        milliseconds = 1000 * min(_seconds(way, device) for _ in range(5))
        sheet.row("product of two bf16 matrices", way=name, dtype=str(found.dtype), largest_error=f"{error:.1e}",
                  ms=f"{milliseconds:.2f}")  # fmt: skip


def _seconds(way, device: torch.device) -> float:
    begun = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun
