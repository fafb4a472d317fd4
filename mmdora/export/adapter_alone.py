"""Writes an adapter alone, in the one form in which vLLM serves it over its base (`--enable-lora`).

vLLM reads PEFT's files by its `vllm/lora/peft_helper.py`: no DoRA, no `modules_to_save`, and before 0.32 one rank and
one alpha for all modules (`rank_pattern` and `alpha_pattern` are not read). Of a vision-language model it serves what
adapts the language model; adapters of other parts are dropped with a line in its log, and the answers are then others.
So alpha is folded into B here, smaller ranks are filled up with zeros, and what would not be served is refused.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from mmdora.adapt.plan import Entry, Plan
from mmdora.adapter_files.adapters import read_adapter
from mmdora.adapter_files.files import CONFIG, OURS, PREFIX, WEIGHTS, own_plan, write_facts
from mmdora.adapter_files.peft_config import write_peft_config
from mmdora.config import ImageTokens
from mmdora.errors import MmdoraError
from mmdora.export.place import beside, readable, writing
from mmdora.families import Family, family_of
from mmdora.files import write_json, write_whole
from mmdora.models.base import skeleton
from mmdora.models.chat_template import FILE as TEMPLATE
from mmdora.models.load import load_generation_config, load_processor
from mmdora.models.locate import Location, locate
from mmdora.outputs.folder import check_new_folder

MAX_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's `--max-lora-rank` (`vllm/config/lora.py`)."""


def export_adapter(source: Path | str, out: Path | str, *, say: Callable[[str], Any] = print) -> str:
    """Write the adapter of `source` to the new folder `out`, for vLLM.

    Args:
        source: run folder or adapter folder, of mmdora or of PEFT.
        out: a new or empty folder. PEFT and mmdora load what is written there too.
        say: receives a line about what was written.

    Returns:
        The command that serves it.

    Raises:
        MmdoraError: there is no adapter, or vLLM would not serve it as it was trained; the message names the merged
            export, which it serves.
    """
    out = Path(out)
    check_new_folder(out)
    location = locate(source)
    if location.adapter is None:
        raise MmdoraError(f"{source}: is no adapter; give a run folder or an adapter folder")
    plan, tensors = _read(location, location.adapter)
    family = family_of(load_processor(location.base, template=location.template))
    if problem := unserved(plan) or _other_prompts(location, family):
        raise MmdoraError(
            f"{source}: vLLM would not serve this as trained: {problem}; merge it: mmdora export {source} OUT"
        )
    rank = max(entry.rank for entry in plan.entries)
    written = replace(plan, entries=tuple(_folded(entry, rank) for entry in plan.entries))
    factors = {name: tensor for entry in plan.entries for name, tensor in _factors(entry, tensors, rank).items()}
    template = _own_template(location, family)
    with beside(out) as folder, writing(out, sum(tensor.nbytes for tensor in factors.values())):
        write_whole(folder / WEIGHTS, lambda path: save_file(factors, path, metadata={"format": "pt"}))
        ranks = {entry.name: rank for entry in plan.entries}
        write_json(folder / CONFIG, write_peft_config(written, ranks, [], base=location.base))
        if template is not None:
            write_whole(folder / TEMPLATE, template)
        if (location.adapter / OURS).exists():  # PEFT's adapters do not tell their base's values, so neither does this.
            write_facts(folder, written, base=location.base, template=location.template)
        readable(folder)
    say(f"{out}: LoRA of {len(plan.entries)} modules, rank {rank}, its scaling folded into B")
    return _command(location, out, rank, template is not None)


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


def _read(location: Location, folder: Path) -> tuple[Plan, Mapping[str, Tensor]]:
    """The plan and the tensors of an adapter, checked against the modules of its base, of which no weight is read."""

    def same(_: Any) -> Mapping[str, Any]:
        return own_plan(folder).fingerprint if (folder / OURS).exists() else {}

    return read_adapter(skeleton(location.base), folder, same)


def _other_prompts(location: Location, family: Family) -> str | None:
    """Why vLLM, with the base's own files, would compute, ask or end otherwise than in training; None if not."""
    if location.quantize is not None:
        return f"it was trained on {location.quantize.type} weights, and vLLM would put it on the base's own"
    if location.image_tokens != ImageTokens():
        return "it gives pictures the base's number of tokens, and this adapter was trained with another"
    base = load_generation_config(location.base)
    if family.ending.stops(base) != family.ending.base_stops(base):
        return f"it stops where the base does, and this adapter ends its answers with {family.ending.token}"
    return None


def _own_template(location: Location, family: Family) -> str | None:
    """The chat template of the training, if it is not the one that the base's files hold."""
    template = family.processor.chat_template
    return None if template == load_processor(location.base).chat_template else template


def _folded(entry: Entry, rank: int) -> Entry:
    return replace(entry, rank=rank, alpha=float(rank), scaling=1.0)


def _factors(entry: Entry, tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Name in the file -> A [rank, I] and scaling B [O, rank] in fp32, for one adapted linear."""
    lora_A, lora_B = (tensors[f"{entry.name}.lora_{side}.weight"].to(torch.float32) for side in "AB")
    missing = rank - entry.rank
    return {
        f"{PREFIX}{entry.name}.lora_A.weight": pad(lora_A, (0, 0, 0, missing)).contiguous(),
        f"{PREFIX}{entry.name}.lora_B.weight": pad(lora_B * entry.scaling, (0, missing)).contiguous(),
    }


def _command(location: Location, out: Path, rank: int, with_template: bool) -> str:
    most = next(allowed for allowed in MAX_RANKS if allowed >= rank)
    words = ["vllm", "serve", location.source, "--enable-lora", "--max-lora-rank", str(most)]
    words += ["--lora-modules", f"{out.name}={out.absolute()}"]
    words += ["--chat-template", str(out.absolute() / TEMPLATE)] if with_template else []
    return shlex.join(words)
