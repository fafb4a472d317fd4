"""Puts a LoRA into the one form in which vLLM serves it over its base (`--enable-lora`), or says why that cannot be.

vLLM reads PEFT's files by its `vllm/lora/peft_helper.py`: no DoRA, no `modules_to_save`, and before 0.32 one rank and
one alpha for all modules (`rank_pattern` and `alpha_pattern` are not read). Of a vision-language model it serves what
adapts the language model; adapters of other parts are dropped with a line in its log, and the answers are then others.
So alpha is folded into B here, smaller ranks are filled up with zeros, and what would not be served is refused.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmdora.adapt.plan import Entry, Plan
from mmdora.adapter_files.files import PREFIX
from mmdora.config import ImageTokens
from mmdora.families import Family
from mmdora.models.load import load_generation_config
from mmdora.models.locate import Location

MAX_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's `--max-lora-rank` (`vllm/config/lora.py`)."""


def folded(plan: Plan, tensors: Mapping[str, Tensor]) -> tuple[Plan, dict[str, Tensor]]:
    """The plan with one rank and scaling 1 for all modules, and name in the file -> A [R, I] or B [O, R], in fp32."""
    rank = max(entry.rank for entry in plan.entries)
    factors = {name: tensor for entry in plan.entries for name, tensor in _factors(entry, tensors, rank).items()}
    entries = (replace(entry, rank=rank, alpha=float(rank), scaling=1.0) for entry in plan.entries)
    return replace(plan, entries=tuple(entries)), factors


def unserved(plan: Plan) -> str | None:
    """Why vLLM would serve this adapter otherwise than it was trained; None if it would not."""
    if plan.has_magnitudes:
        methods = sorted({entry.method for entry in plan.entries if entry.method != "lora"})
        return f"it has no {' and no '.join(methods)}, only LoRA"
    if plan.full:
        return f"it reads no tensors that were trained in full ({len(plan.full)}, {plan.full[0]} first)"
    elsewhere = Counter(entry.modality for entry in plan.entries if entry.modality != "language")
    if elsewhere:
        told = ", ".join(f"{count} modules of the {modality}" for modality, count in elsewhere.items())
        return f"it drops the adapters outside of the language model ({told})"
    if other := next((entry for entry in plan.entries if entry.kind != "linear"), None):
        return f"{other.name} is no linear but an adapted {other.kind}"
    if (rank := max(entry.rank for entry in plan.entries)) > MAX_RANKS[-1]:
        return f"its largest rank is {MAX_RANKS[-1]}, and this adapter's is {rank}"
    return None


def other_prompts(location: Location, family: Family) -> str | None:
    """Why vLLM, with the base's own files, would compute, ask or end otherwise than in training; None if not."""
    if location.quantize is not None:
        return f"it was trained on {location.quantize.type} weights, and vLLM would put it on the base's own"
    if location.image_tokens != ImageTokens():
        return "it gives pictures the base's number of tokens, and this adapter was trained with another"
    base = load_generation_config(location.base)
    if family.ending.stops(base) != family.ending.base_stops(base):
        return f"it stops where the base does, and this adapter ends its answers with {family.ending.token}"
    return None


def _factors(entry: Entry, tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Name in the file -> A [rank, I] and scaling B [O, rank] in fp32, for one adapted linear."""
    lora_A, lora_B = (tensors[f"{entry.name}.lora_{side}.weight"].to(torch.float32) for side in "AB")
    missing = rank - entry.rank
    return {
        f"{PREFIX}{entry.name}.lora_A.weight": pad(lora_A, (0, 0, 0, missing)).contiguous(),
        f"{PREFIX}{entry.name}.lora_B.weight": pad(lora_B * entry.scaling, (0, missing)).contiguous(),
    }


def command(base: str, adapter: str, name: str, rank: int, template: str | None) -> str:
    """The shell command that serves an adapter as the model `name`.

    Args:
        base: folder or hub id of its base.
        adapter: folder of the adapter.
        rank: of its modules.
        template: file with its chat template, if that is not the base's own.
    """
    most = next(allowed for allowed in MAX_RANKS if allowed >= rank)
    words = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(most)]
    words += ["--lora-modules", f"{name}={adapter}"]
    words += ["--chat-template", template] if template is not None else []
    return shlex.join(words)
