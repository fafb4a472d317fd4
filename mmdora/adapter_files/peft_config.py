"""Writes `adapter_config.json`, the config of PEFT, from a `Plan`, and checks it before it is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdora.adapt.plan import Plan
from mmdora.adapter_files.experts import LAYOUT, peft_key
from mmdora.errors import MmdoraError
from mmdora.layers import BIASES, AdaptedExpertWeight

UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
"""Fields that change what the adapter computes, in a way mmdora has no layer for."""

BIAS_MODES = ("none", "all", "lora_only")

MOST_REPEATS = 3
"""How many repetitions (`*`, `+`) a pattern in an adapter's config may have. Matching takes time as the length of a
module's name to the power of their number, and nothing can interrupt it."""

KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mipl")
"""Values of `init_lora_weights` that leave the base's weights as they are. PiSSA and its like change them."""


def write_peft_config(plan: Plan, ranks: Mapping[str, int], whole: list[str], *, base: str | None) -> dict[str, Any]:
    """Make the `adapter_config.json` of a plan that has adapted modules.

    Every module is named in full. Scaling is written as alpha = scaling * rank, rsLoRA included, because PEFT has
    one `use_rslora` for all modules. PEFT has one dropout for all modules too, so it is
    written only if all of ours agree.

    Args:
        plan: with at least one entry.
        ranks: name of a module or of a parameter of experts (`peft_key`) -> rank of its tensors in the file, for all
            that PEFT shall adapt.
        whole: modules trained in full.
        base: name or folder of the base.
    """
    alphas = {peft_key(e): _whole(e.scaling * ranks[peft_key(e)]) for e in plan.entries if peft_key(e) in ranks}
    of_experts = [entry.weight for entry in plan.entries if entry.kind == AdaptedExpertWeight.kind]
    # PEFT refuses dropout beside parameters of experts; without it, it computes the same in evaluation.
    by_experts = {"target_parameters": of_experts, "peft_version": LAYOUT, "lora_dropout": 0.0} if of_experts else {}
    biases = [name for name in plan.full if name.rpartition(".")[2] in BIASES and not _within(name, whole)]
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    dropouts = {entry.dropout for entry in plan.entries if entry.rank and entry.kind != "embedding"}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropouts.pop() if len(dropouts) == 1 else 0.0,
        "bias": "all" if biases else "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": plan.has_magnitudes,
        "use_rslora": False,
        "target_modules": [name for name in ranks if name not in of_experts],
        "modules_to_save": whole or None,
        "rank_pattern": {_exactly(name): value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {_exactly(name): value for name, value in alphas.items() if value != alpha},
        **by_experts,
    }


def check_supported(config: Mapping[str, Any], folder: Path) -> None:
    """Raise if PEFT's config asks for a kind of adapter that mmdora has no layer for."""
    if config.get("peft_type") != "LORA":
        raise MmdoraError(f"{folder}: peft_type is {config.get('peft_type')}; mmdora loads LORA (LoRA and DoRA)")
    if config.get("bias", "none") not in BIAS_MODES:
        raise MmdoraError(f"{folder}: bias is {config['bias']!r:.80}; PEFT knows {', '.join(BIAS_MODES)}")
    for key in UNSUPPORTED:
        if config.get(key):
            raise MmdoraError(f"{folder}: {key} is set; mmdora has no layer for it, load this adapter with peft")
    if config.get("init_lora_weights") not in KEEPS_BASE:
        raise MmdoraError(
            f"{folder}: init_lora_weights is {config['init_lora_weights']!r}, which changes the base's weights; "
            "convert it to plain LoRA with peft (save_pretrained(path_initial_model_for_weight_conversion=...))"
        )


def check_config(config: Mapping[str, Any], where: Path) -> None:
    """Raise for values of a wrong kind, and for patterns whose matching may never end: Python cannot interrupt it."""
    for key in ("lora_alpha", "lora_dropout"):
        value = config.get(key, 0)
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise MmdoraError(f"{where}: {key}: expected a number, found {value!r:.80}")
    for key in ("modules_to_save", "target_parameters"):
        names = config.get(key) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise MmdoraError(f"{where}: {key}: expected a list of names")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise MmdoraError(f"{where}: alpha_pattern: expected an object, found {type(patterns).__name__}")
    for pattern, value in patterns.items():
        if not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise MmdoraError(f"{where}: alpha_pattern: {pattern[:80]!r}: expected a number, found {value!r:.80}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise MmdoraError(f"{where}: alpha_pattern: {pattern[:80]!r} is no pattern ({error})") from None
        if re.search(r"\)[*+{]", pattern) or len(re.findall(r"(?<!\\)[*+{]", pattern)) > MOST_REPEATS:
            raise MmdoraError(
                f"{where}: alpha_pattern: {pattern[:80]!r} repeats too much to be matched in bounded time; name modules"
            )


def _within(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _exactly(name: str) -> str:
    return "^" + re.escape(name)


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value
