"""Cost of one training step: mmdora's adapters beside PEFT's, the frozen model and full fine-tuning.

    python benchmarks/step.py            # everything this machine can measure: table, plot, results/step_*.{json,md}
    python benchmarks/step.py --quick    # under a minute; the ratios are the last line

All variants share one base, one batch and one seed and run in turn, in a new order every round. A
ratio is the median over rounds of (variant / peer in the same round): process CPU time on a CPU,
wall time with synchronisation on CUDA. `PEFT LoRA again` is the peer measured twice: its distance
from 1 is the noise. A step is forward, backward and AdamW; bf16 runs under autocast with adapters
in fp32, as the trainers of both do. Memory: every variant in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import gc
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Threads that spin while they wait would count as work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from harness import RESULTS, show, write
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import mmdora

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Case:
    """A LLaVA-shaped model with random weights, and one batch for it."""

    hidden: int = 1024
    intermediate: int = 2816
    layers: int = 2
    batch: int = 4  # sequences per micro-batch, each with one image
    length: int = 192  # tokens per sequence, visual ones included
    accumulation: int = 1  # micro-batches per optimizer step
    vocabulary: int = 2048
    large_tower: bool = False  # CLIP-L/336 of LLaVA-1.5, else two small layers
    rank: int = 16
    dtype: str = "fp32"
    device: str = "cpu"
    threads: int = 1
    checkpointing: bool = False

    @property
    def tokens(self) -> int:
        """Tokens per optimizer step."""
        return self.batch * self.length * self.accumulation


SMALL = Case()
GROWTH = replace(SMALL, layers=1)
"""How cost grows with rank and tokens is measured on one layer."""
WIDTH_7B = Case(
    hidden=4096,
    intermediate=11008,
    layers=8,
    batch=2,
    length=2048,
    accumulation=4,
    vocabulary=32064,
    large_tower=True,
    rank=128,
    dtype="bf16",
    device="cuda",
)
"""LLaVA-1.5-7B's dimensions, 8 of its 32 layers, 16,384 tokens per optimizer step."""


# --- the variants ------------------------------------------------------------------------------


def build(case: Case) -> nn.Module:
    """The base with random weights, frozen."""
    torch.manual_seed(0)
    torch.set_num_threads(case.threads)
    vision: dict[str, Any]
    if case.large_tower:
        vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        vision |= {"image_size": 336, "patch_size": 14}
    else:
        vision = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
        vision |= {"image_size": 64, "patch_size": 16}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(
            vocab_size=case.vocabulary,
            hidden_size=case.hidden,
            intermediate_size=case.intermediate,
            num_hidden_layers=case.layers,
            num_attention_heads=case.hidden // 128,
            num_key_value_heads=case.hidden // 128,
            max_position_embeddings=4096,
        ),
        image_token_index=case.vocabulary - 1,
        vision_feature_layer=-2,
    )
    with torch.device(case.device):
        model: Any = LlavaForConditionalGeneration(config)
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[case.dtype])
    return model.requires_grad_(False).train()


def batch_of(case: Case, model: Any) -> dict[str, torch.Tensor]:
    """Token ids [B, T] that begin with the visual tokens, labels on the text, one picture each."""
    vision = model.config.vision_config
    visual = (vision.image_size // vision.patch_size) ** 2
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, case.vocabulary - 1, (case.batch, case.length), generator=generator)
    ids[:, 1 : 1 + visual] = case.vocabulary - 1
    labels = ids.masked_fill(ids == case.vocabulary - 1, -100)
    pixels = torch.randn(case.batch, 3, vision.image_size, vision.image_size, generator=generator)
    inputs = {"input_ids": ids, "labels": labels, "pixel_values": pixels.to(model.dtype)}
    return {name: tensor.to(case.device) for name, tensor in inputs.items()}


def _twin(base: nn.Module) -> Any:
    """A copy that shares the frozen weights."""
    return copy.deepcopy(base, {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())})


def floor(base: nn.Module, case: Case, dropout: float) -> Any:
    """Nothing trains; gradients flow from the loss to the language model's input."""
    model = _twin(base)
    model.enable_input_require_grads()
    return model


def full(base: nn.Module, case: Case, dropout: float) -> Any:
    model: Any = copy.deepcopy(base)
    model.model.language_model.requires_grad_(True)
    return model


def peft(base: nn.Module, case: Case, dropout: float, dora: bool) -> Any:
    names = "|".join(LINEARS)
    config = LoraConfig(
        r=case.rank,
        lora_alpha=2 * case.rank,
        lora_dropout=dropout,
        target_modules=rf".*language_model.*\.({names})",
        use_dora=dora,
    )
    return get_peft_model(_twin(base), config)


def ours(base: nn.Module, case: Case, dropout: float, method: str) -> Any:
    model = _twin(base)
    adapt = {"method": method, "rank": case.rank, "alpha": 2 * case.rank, "dropout": dropout, "targets": list(LINEARS)}
    mmdora.inject(model, {"language": adapt})
    return model


PEER = "PEFT LoRA"
VARIANTS: dict[str, Callable[[nn.Module, Case, float], Any]] = {
    PEER: lambda *given: peft(*given, dora=False),
    f"{PEER} again": lambda *given: peft(*given, dora=False),
    "PEFT DoRA": lambda *given: peft(*given, dora=True),
    "mmdora LoRA": lambda *given: ours(*given, method="lora"),
    "mmdora DoRA": lambda *given: ours(*given, method="dora"),
    "frozen floor": floor,
    "full fine-tuning": full,
}
NO_DROPOUT = ("frozen floor", "full fine-tuning")


class Step:
    """One training step of one variant."""

    def __init__(self, name: str, base: nn.Module, case: Case, dropout: float):
        torch.manual_seed(2)
        self.case, self.model = case, VARIANTS[name](base, case, dropout)
        self.batch = batch_of(case, base)
        if case.checkpointing:
            self.model.enable_input_require_grads()
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [p for p in self.model.parameters() if p.requires_grad]
        # full fine-tuning of a GPU-sized model would spend its memory on moments; its step is forward and backward
        steps = trained and not (name == "full fine-tuning" and case.device == "cuda")
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4) if steps else None
        self.trained = trained
        with torch.no_grad():  # away from the start, where B is zero
            for key, parameter in self.model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.01)

    def __call__(self) -> float:
        half = self.case.dtype == "bf16"
        for _ in range(self.case.accumulation):
            with torch.autocast(self.case.device, torch.bfloat16) if half else nullcontext():
                loss = self.model(**self.batch, use_cache=False).loss / self.case.accumulation
            loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        for parameter in self.trained:
            parameter.grad = None
        return float(loss.detach())


# --- measuring ---------------------------------------------------------------------------------


def seconds(step: Callable[[], object], device: str) -> float:
    """Of one call: process CPU time, or on CUDA wall time until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
        begun = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - begun
    begun = time.process_time()
    step()
    return time.process_time() - begun


def interleaved(steps: dict[str, Step], rounds: int, device: str, label: str) -> dict[str, list[float]]:
    """Seconds of every variant in every round; two rounds before that do not count."""
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
    """Median over rounds of name / peer, paired."""
    return statistics.median(a / b for a, b in zip(times[name], times[peer], strict=True))


def timings(case: Case, dropouts: tuple[float, ...], names: tuple[str, ...], rounds: int) -> dict[str, list[float]]:
    """Seconds by `name, dropout`."""
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
    """Peak memory of two steps of a variant in MB, in a process of its own: what it needs beyond the base."""
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
    Step("frozen floor", base, replace(case, batch=1), 0.0)()  # what the libraries take once
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    level = _peak()
    step = Step(name, base, case, dropout)
    for _ in range(2):
        step()
    return (_peak() - level) / 1e6


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


# --- what is shown -----------------------------------------------------------------------------


def describe(case: Case) -> str:
    size = f"hidden {case.hidden}, {case.layers} layer{'s' * (case.layers > 1)}, {case.tokens:,} tokens"
    words = f"{case.device} {case.dtype}, {size}, r {case.rank}"
    words += f", {case.threads} threads" * (case.threads > 1)
    return words + (", activation checkpointing" if case.checkpointing else "")


def rows_of(times: dict[str, list[float]], memories: dict[str, float]) -> list[dict[str, Any]]:
    """One row a variant: seconds, against PEFT's LoRA of the same dropout, against the floor, memory."""
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


def norm_errors() -> list[dict[str, Any]]:
    """Relative error of the factored norm against float64: worst row, by the size of s B A against W0."""
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
    """Where DoRA's step is above the floor's: self time by operator, on the same batch."""
    from torch.profiler import ProfilerActivity

    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if case.device == "cuda" else [])
    names, base = ("frozen floor", PEER, "mmdora DoRA"), build(case)
    steps = {name: Step(name, base, case, 0.0) for name in names}
    times: dict[str, dict[str, list[float]]] = {}
    calls: dict[str, dict[str, int]] = {}
    for number in range(-2, rounds):
        for name, step in steps.items():
            with torch.profiler.profile(activities=kinds) as found:
                step()
            for entry in found.key_averages() if number >= 0 else ():
                took = entry.self_device_time_total if case.device == "cuda" else entry.self_cpu_time_total
                times.setdefault(entry.key, {}).setdefault(name, []).append(took / 1000)
                calls.setdefault(entry.key, {})[name] = entry.count
    spent = {op: {name: statistics.median(found) for name, found in by.items()} for op, by in times.items()}
    shown = sorted(spent, key=lambda op: -max(spent[op].values()))[:24]
    head = f"{'self ms per step (calls)':<44}" + "".join(f"{name:>22}" for name in names) + f"{'DoRA - floor':>14}"
    lines = [f"One step, {describe(case)}, dropout 0, torch.profiler, by turns, medians of {rounds} rounds", "", head]
    for op in [*shown, "all"]:
        values = [sum(s.get(n, 0) for s in spent.values()) if op == "all" else spent[op].get(n, 0.0) for n in names]
        counts = ["" if op == "all" else f" ({calls[op].get(n, 0)})" for n in names]
        cells = "".join(f"{f'{v:.2f}{c}':>22}" for v, c in zip(values, counts, strict=True))
        lines.append(f"{op[:43]:<44}{cells}{values[-1] - values[0]:>14.2f}")
    return "\n".join(lines) + "\n"


def plot(growth: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """Seconds by tokens and by rank, one line a variant."""
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


# --- the runs ----------------------------------------------------------------------------------

CORE = (PEER, f"{PEER} again", "PEFT DoRA", "mmdora LoRA", "mmdora DoRA", "frozen floor")


def quick() -> None:
    """The ratios of the committed table on one layer, few rounds."""
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
    """(case, dropouts, variants, measure memory), the main one first."""
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
