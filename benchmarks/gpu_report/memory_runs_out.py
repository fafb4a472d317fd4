"""What a user meets when memory runs out: smaller micro-batches where they are allowed, else one line, and its time."""

from __future__ import annotations

import functools
import gc
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

import mmdora
from gpu_report.sheet import Sheet
from mmdora.data_prep import scenes
from mmdora.errors import OutOfMemory

TABLE = "a step that does not fit"
SHARE = 0.7
"""Of the memory that a step with all rows takes: too little for all rows, enough for half of them."""


def measure(sheet: Sheet) -> None:
    rows = 4 if sheet.small else 64
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        scenes.prepare(root / "data", kind="count", rows=2 * rows, held_out=2, workers=1)

        def config(run: str, **training: Any) -> dict[str, Any]:
            training |= {"output": str(root / run), "steps": 1, "batch_size": rows, "report_to": []}
            return {"adapt": {"language": {"method": "dora", "rank": 16}}, "training": training,
                    "data": {"train": str(root / "data" / "train.jsonl")}}  # fmt: skip

        mmdora.train(config("all"), say=print)
        with _limited(rows // 2, sheet):
            begun = time.monotonic()
            # Below a progress bar, tqdm writes the lines of a run.
            with redirect_stdout(io.StringIO()) as said:
                mmdora.train(config("halved", find_batch_size=True), say=print)
            took, lines = f"{time.monotonic() - begun:.1f}", said.getvalue().splitlines()
            line = next((line for line in lines if "out of memory" in line), "never out of memory")
            sheet.row(TABLE, training="find_batch_size: true", seconds=took, line=line)
            begun = time.monotonic()
            try:
                mmdora.train(config("refused"), say=print)
                line = "never out of memory"
            except OutOfMemory as error:
                line = str(error)
            sheet.row(TABLE, training="find_batch_size: false", seconds=f"{time.monotonic() - begun:.1f}", line=line)


@contextmanager
def _limited(rows: int, sheet: Sheet) -> Iterator[None]:
    """Inside the block, memory suffices for about this many rows: by a limit on CUDA, on a CPU by raising the error."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        most = torch.cuda.max_memory_reserved()
        gc.collect()
        torch.cuda.empty_cache()
        sheet.note(f"all rows took {most / 2**20:,.0f} MiB; then {SHARE:.0%} of that was allowed")
        torch.cuda.set_per_process_memory_fraction(SHARE * most / total)
        yield
        torch.cuda.set_per_process_memory_fraction(1.0)
        return
    forward = LlavaForConditionalGeneration.forward

    @functools.wraps(forward)
    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The skeleton of the estimate takes no memory: its weights have strides of 0.
        if len(kwargs["input_ids"]) > rows and any(self.lm_head.weight.stride()):
            raise torch.OutOfMemoryError("raised by gpu_report, which has no device to fill")
        return forward(self, *args, **kwargs)

    LlavaForConditionalGeneration.forward = limited
    try:
        yield
    finally:
        LlavaForConditionalGeneration.forward = forward
