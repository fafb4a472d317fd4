"""Measures the cost of adapters on fused experts: mmdora's LoRA and DoRA beside PEFT's LoRA (`target_parameters`).

    python benchmarks/experts.py            # results/experts_cpu.{json,md}
    python benchmarks/experts.py --quick    # few rounds, nothing written

A step is forward, backward and AdamW of one module of experts as Qwen3-VL-MoE has it, with random weights, fp32, by
`grouped_mm`, under one random routing for all variants. PEFT has no DoRA here. Variants take turns as in `step.py`;
times are process CPU time, and `PEFT LoRA again` shows the noise. Memory is the peak of two steps beyond the base, in a
process of its own.
"""

from __future__ import annotations

import argparse
import copy
import gc
import multiprocessing
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Threads that spin while they wait would count as CPU time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from harness import show, write
from measures import _peak, interleaved, ratio
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from mmdora.layers import AdaptedExpertWeight, place_of

FLOOR, PEER = "frozen floor", "PEFT LoRA"
OURS = {"mmdora LoRA": "lora", "mmdora DoRA": "dora"}
NAMES = (FLOOR, PEER, f"{PEER} again", *OURS)


@dataclass(frozen=True)
class Case:
    """The sizes of a module of experts, and how many tokens it gets."""

    tokens: int
    experts: int = 32
    chosen: int = 4
    hidden: int = 512
    width: int = 192
    rank: int = 16

    def __str__(self) -> str:
        return (
            f"{self.experts} experts of {self.hidden} x {self.width}, {self.chosen} per token, {self.tokens:,} tokens, "
            f"r {self.rank}"
        )


# A server that has imported everything forks a fresh process for each measurement of memory.
SERVER = multiprocessing.get_context("forkserver")
CASES = (Case(1024), Case(16))


class Mixture(nn.Module):
    """A module of experts with its name in a model, as PEFT wants it."""

    def __init__(self, case: Case):
        super().__init__()
        torch.manual_seed(0)
        config = SimpleNamespace(
            num_experts=case.experts, hidden_size=case.hidden, moe_intermediate_size=case.width, hidden_act="silu",
            _experts_implementation="grouped_mm",
        )  # fmt: skip
        self.experts: Any = Qwen3VLMoeTextExperts(config)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)
        self.requires_grad_(False)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return self.experts(x, chosen, weights)


class Step:
    """One training step of one variant."""

    def __init__(self, name: str, base: Mixture, case: Case):
        model: Any = copy.deepcopy(base, {id(parameter): parameter for parameter in base.parameters()})
        if name.startswith(PEER):
            parameters = ["experts.gate_up_proj", "experts.down_proj"]
            config = LoraConfig(r=case.rank, lora_alpha=2 * case.rank, target_modules=[], target_parameters=parameters)
            model = get_peft_model(model, config)
        elif name in OURS:
            for leaf in ("gate_up", "down"):
                own = AdaptedExpertWeight(place_of(model, f"experts.{leaf}"), OURS[name], rank=case.rank, scaling=2.0)  # pyright: ignore
                model.experts = own.install()
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(case.tokens, case.hidden, generator=generator).requires_grad_()
        scores = torch.rand(case.tokens, case.experts, generator=generator)
        self.weights, self.chosen = scores.softmax(-1).topk(case.chosen)
        self.model, self.trained = model, [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4) if self.trained else None
        with torch.no_grad():  # At the start B is zero, which would make some products cheaper.
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.01)

    def __call__(self) -> None:
        self.model(self.x, self.chosen, self.weights).square().mean().backward()
        if self.optimizer is not None:
            self.optimizer.step()
        for parameter in (self.x, *self.trained):
            parameter.grad = None


def memory(name: str, case: Case) -> float:
    """Peak memory of two steps beyond the base, in MB."""
    torch.set_num_threads(1)
    base = Mixture(case)
    Step(FLOOR, base, Case(1))()  # Libraries allocate memory once, which must not count.
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # This makes Linux forget the peak so far.
    level = _peak()
    step = Step(name, base, case)
    for _ in range(2):
        step()
    return (_peak() - level) / 1e6


def rows(case: Case, rounds: int, *, memories: bool) -> list[dict[str, Any]]:
    base = Mixture(case)
    times = interleaved({name: Step(name, base, case) for name in NAMES}, rounds, "cpu", str(case))
    table = []
    for name in NAMES:
        row = {"variant": name, "ms per step": f"{1000 * statistics.median(times[name]):.1f}"}
        row |= {"/ PEFT LoRA": f"{ratio(times, name, PEER):.2f}", "/ floor": f"{ratio(times, name, FLOOR):.2f}"}
        if memories:
            with SERVER.Pool(1) as pool:
                row["peak MB"] = f"{pool.apply(memory, (name, case)):,.0f}"
        table.append(row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case, 5 rounds, nothing written")
    parser.add_argument("--rounds", type=int, default=10, help="rounds per case (default: 10)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        show(str(CASES[0]), rows(CASES[0], 5, memories=False))
        return
    tables = {}
    for case in CASES:
        tables[str(case)] = rows(case, options.rounds, memories=True)
        show(str(case), tables[str(case)])
    notes = f"{options.rounds} rounds, process CPU time, one thread; ratios are paired medians."
    print(write("experts_cpu", "python benchmarks/experts.py", tables, notes))


if __name__ == "__main__":
    main()
