"""Measures what an unmerged adapter costs per answer: time to the first token, and time for each further token.

    python benchmarks/decode.py            # table, results/decode_DEVICE.{json,md}; some minutes
    python benchmarks/decode.py --quick    # a rehearsal: one small layer; nothing is written

A LLaVA-shaped model with random weights answers one question about one picture: greedily, with its key-value cache,
batch 1, in fp32 on a CPU with one thread. The ways are: the merged model; its adapter beside the frozen weights, as in
`mmdora demo --shared-base`; and PEFT's adapters with the same numbers. PEFT's DoRA is also measured inside its
`DoraCaching`, which keeps B A and the norms of all layers, and so needs as much memory as the weights that they change.
All ways take turns in one run. Times are process CPU time, and ratios are medians over rounds of the ratio within a
round. `merged again` is the merged model measured twice, so its distance from 1 shows the noise. In fp32 all ways of
one method must give the same tokens. On CUDA the dtype is bf16, and times are wall time.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from harness import show, write
from measures import describe, interleaved, ratio
from peft.helpers import DoraCaching
from torch import nn
from variants import Case, batch_of, build, ours, peft

import mmdora

CASE = Case(hidden=1024, layers=8, batch=1, length=64)
TOKENS = 16  # Tokens of an answer after its first one.
MERGED, CACHED = "merged", "PEFT DoRA, DoraCaching"
PEFT_NAMES = {"lora_A": "lora_A.default.weight", "lora_B": "lora_B.default.weight"}
PEFT_NAMES |= {"magnitude": "lora_magnitude_vector.default.weight"}


def ways(base: nn.Module, case: Case) -> dict[str, Any]:
    """Name of each way -> its model. The models of one method have the same numbers."""
    models: dict[str, Any] = {}
    for method, name in (("lora", "LoRA"), ("dora", "DoRA")):
        model = ours(base, case, 0.0, method)
        _moved(model)
        models[f"mmdora {name}"] = model
        models[f"PEFT {name}"] = peer = peft(base, case, 0.0, dora=method == "dora")
        theirs = dict(peer.named_parameters())
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                module, _, leaf = key.rpartition(".")
                if leaf in PEFT_NAMES:
                    theirs[f"base_model.model.{module}.{PEFT_NAMES[leaf]}"].copy_(parameter)
    models[CACHED] = copy.deepcopy(models["PEFT DoRA"])
    for name in (MERGED, f"{MERGED} again"):
        models[name] = mmdora.merge(copy.deepcopy(models["mmdora DoRA"]))
    return {name: model.eval() for name, model in models.items()}


def _moved(model: nn.Module) -> None:
    """Change all adapter parameters, because at the start B is zero and the magnitude is the base's."""
    torch.manual_seed(2)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("lora_B"):
                parameter.normal_(std=0.01)
            elif key.endswith("magnitude"):
                parameter.mul_(1 + 0.05 * torch.randn_like(parameter))


def asking(name: str, model: Any, inputs: dict[str, torch.Tensor], tokens: int) -> Callable[[], list[int]]:
    """A function that makes the model give a greedy answer of exactly `tokens` tokens."""

    def ask() -> list[int]:
        given: dict[str, Any] = {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens}
        with DoraCaching(enabled=name == CACHED):
            return model.generate(**inputs, **given, pad_token_id=0)[0, -tokens:].tolist()

    return ask


def check(asks: dict[str, Callable[[], list[int]]]) -> None:
    """Exit if the ways of one method give different answers."""
    answers = {name: ask() for name, ask in asks.items()}
    for method in ("LoRA", "DoRA"):
        same = [name for name in answers if method in name or (method == "DoRA" and name.startswith(MERGED))]
        for name in same:
            if answers[name] != answers[f"mmdora {method}"]:
                raise SystemExit(f"{name} answers {answers[name]}, mmdora {method} {answers[f'mmdora {method}']}")


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    base = build(case)
    inputs = {name: value for name, value in batch_of(case, base).items() if name != "labels"}
    models = ways(base, case)
    long = {name: asking(name, model, inputs, 1 + TOKENS) for name, model in models.items()}
    if case.dtype == "fp32":
        check(long)
    first = {f"{name}, first": asking(name, model, inputs, 1) for name, model in models.items()}
    times: Any = interleaved({**long, **first}, rounds, case.device, describe(case))
    for name in models:  # The first token of the same round is subtracted from each answer.
        pairs = zip(times[name], times[f"{name}, first"], strict=True)
        times[f"{name}, each"] = [(whole - begun) / TOKENS for whole, begun in pairs]
    order = [MERGED, f"{MERGED} again", "mmdora LoRA", "mmdora DoRA", "PEFT LoRA", "PEFT DoRA", CACHED]
    return [
        {"way": name}
        | {
            column: value
            for part, words in (("first", "first token"), ("each", "each further"))
            for column, value in (
                (f"{words}, ms", f"{1000 * statistics.median(times[f'{name}, {part}']):.1f}"),
                (f"/ {MERGED}, {part}", f"{ratio(times, f'{name}, {part}', f'{MERGED}, {part}'):.2f}"),
            )
        }
        for name in order
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="a rehearsal: small, printed only")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = CASE if device == "cpu" else replace(CASE, device=device, dtype="bf16")
    if given.quick:
        case, given.rounds = replace(case, hidden=256, intermediate=512, layers=1), 3
    tables = {describe(case): measure(case, given.rounds)}
    for title, rows in tables.items():
        show(title, rows)
    if not given.quick:
        print(write(f"decode_{device}", " ".join(["python", "benchmarks/decode.py", *sys.argv[1:]]), tables))


if __name__ == "__main__":
    main()
