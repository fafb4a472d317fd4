"""Compares the memory that `mmdora inspect` estimates for a training step with the memory that the step takes.

    python benchmarks/memory.py            # table, results/memory_{cpu,cuda}.{json,md}
    python benchmarks/memory.py --quick    # two cases, nothing written

A LLaVA-shaped model with random weights of at least 500 MB makes two steps of forward, backward and fused AdamW. Each
case runs in a process of its own. On a CPU the peak is RssAnon above its level after the imports, read by a thread
every millisecond; on CUDA it is max_memory_allocated. glibc is told to give freed memory back at once
(MALLOC_MMAP_THRESHOLD_). By default it keeps holes between blocks of under 32 MB. They are several hundred MB here and
do not belong to the step; `--holes` measures with them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from harness import memory_of, show, write
from measures import seconds
from variants import Case, batch_of, build

from mmdora.adapt.inject import inject, make_plan, trainable_parameters
from mmdora.config import RunConfig, validate
from mmdora.train.loss import ChunkedLoss
from mmdora.train.memory import estimate

BOUND = 0.15  # The largest relative error of an estimate with which the benchmark passes.
MODEL = Case(hidden=1024, intermediate=2816, layers=8, batch=4, length=256, vocabulary=32000)
"""The model on a CPU: 530 MB in fp32, so that the libraries' own memory matters little."""
GPU = Case(hidden=4096, intermediate=11008, layers=8, batch=4, length=1024, vocabulary=32064, large_tower=True,
           dtype="bf16", device="cuda")  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A case to measure, with the settings of its training."""

    method: str
    checkpointing: bool
    chunked: bool = True
    rank: int = 16
    dropout: float = 0.0
    case: Case = MODEL
    tower: bool = True  # whether the tower is adapted too, where the method is not full

    def config(self) -> RunConfig:
        low = {"method": self.method, **({} if self.method == "full" else {"rank": self.rank, "dropout": self.dropout})}
        adapt = {
            "vision": {"method": self.method if self.tower and self.method != "full" else "none"},
            "projector": {"method": "full"},
        }
        tree = {
            "model": {"dtype": self.case.dtype},
            "adapt": {**adapt, "language": low},
            "training": {
                "batch_size": self.case.batch, "gradient_checkpointing": self.checkpointing,
                "chunked_loss": self.chunked, "precision": self.case.dtype,
            },
        }  # fmt: skip
        return validate(RunConfig, tree, where=lambda key: "benchmark")


def measure(asked: Measured) -> dict[str, Any]:
    """Estimated and measured peak in bytes, and the seconds of the second step. It needs a process of its own."""
    config, case = asked.config(), asked.case
    imported = memory_of() if case.device == "cpu" else 0
    peak = _Peak()
    if case.device == "cpu":
        peak.start()
    took, trainable, batch = _two_steps(asked, config)
    taken = torch.cuda.max_memory_allocated() if case.device == "cuda" else peak.stop() - imported
    base = build_skeleton(case)
    plan = make_plan(base, config.adapt)
    assert plan.trainable == trainable
    return {"estimate": estimate(base, plan, config, batch).peak, "measured": taken, "seconds": took}


def _two_steps(asked: Measured, config: RunConfig) -> tuple[float, int, dict[str, torch.Tensor]]:
    """Train; gives the seconds of the second step, the number of trained parameters, and the batch on the CPU."""
    case = asked.case
    model: Any = build(case)
    if case.device == "cuda":  # The weights were made in fp32.
        torch.cuda.reset_peak_memory_stats()
    batch = batch_of(case, model)
    plan = inject(model, config.adapt)
    if config.training.precision == "bf16":
        for _, parameter, _, _ in trainable_parameters(model):
            parameter.data = parameter.data.float()
    if asked.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    chunked = ChunkedLoss(model)

    def step() -> None:
        with torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "bf16"):
            if asked.chunked:
                with chunked.applied():
                    loss = model(**batch, use_cache=False).loss
            else:
                loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    took = [seconds(step, case.device) for _ in range(2)]
    return took[-1], plan.trainable, {name: value.cpu() for name, value in batch.items()}


def build_skeleton(case: Case) -> Any:
    """The model of a case on the CPU, with each parameter a single zero, expanded."""
    from dataclasses import replace

    with torch.device("meta"):
        model: Any = build(replace(case, device="meta", dtype="fp32"))
    for module in model.modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            zero = torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
            setattr(module, leaf, zero)
        for leaf, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(leaf, torch.zeros(buffer.shape, dtype=buffer.dtype), persistent=False)
    return model


class _Peak(threading.Thread):
    """The largest RssAnon of this process, read every millisecond."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.over = 0, False

    def run(self) -> None:
        while not self.over:
            self.most = max(self.most, memory_of())
            time.sleep(0.001)

    def stop(self) -> int:
        self.over = True
        self.join()
        return self.most


def cases(device: str) -> list[Measured]:
    case = GPU if device == "cuda" else MODEL
    planned = [Measured(method, on, case=case) for method in ("lora", "dora", "full") for on in (False, True)]
    planned += [Measured("dora", on, dropout=0.05, case=case) for on in (False, True)]
    return [*planned, Measured("dora", False, chunked=False, case=case), Measured("dora", False, rank=256, case=case)]


def row_of(asked: Measured) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        sizes = pool.apply(measure, (asked,))
    ratio = sizes["estimate"] / sizes["measured"]
    name = f"{asked.method}, r {asked.rank}" if asked.method != "full" else "full"
    name += f", dropout {asked.dropout}" if asked.dropout else ""
    return {
        "language": name,
        "gradient checkpointing": "on" if asked.checkpointing else "off",
        "loss in chunks": "on" if asked.chunked else "off",
        "estimate, MB": round(sizes["estimate"] / 1e6),
        "measured, MB": round(sizes["measured"] / 1e6),
        "estimate / measured": f"{ratio:.3f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two cases, nothing written")
    parser.add_argument("--holes", action="store_true", help="leave glibc as it is; nothing written")
    options = parser.parse_args()
    if not options.holes:
        os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": str(2**17)}  # Children read it.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for asked in cases(device)[2:4] if options.quick else cases(device):
        rows.append(row_of(asked))
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    case = cases(device)[0].case
    title = (
        f"{device} {case.dtype}, hidden {case.hidden}, {case.layers} layers, {case.batch} rows of {case.length} tokens"
    )
    show(title, rows)
    if not options.quick and not options.holes:
        print(write(f"memory_{device}", "python benchmarks/memory.py", {title: rows}))
    worst = max(abs(float(row["estimate / measured"]) - 1) for row in rows)
    print(f"cases={len(rows)} worst={worst:.1%} bound={BOUND:.0%}")
    sys.exit(worst > BOUND)


if __name__ == "__main__":
    main()
