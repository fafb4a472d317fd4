"""Between a `Plan` and PEFT's `adapter_config.json`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdora.adapt.entries import check_adaptable, entry_of
from mmdora.adapt.inject import build_plan
from mmdora.adapt.modality import ModelParts
from mmdora.adapt.plan import Entry, Plan
from mmdora.adapter_files.check import scaling_in, shared_parameters
from mmdora.adapter_files.tensors import TWICE, unlike_peft
from mmdora.errors import MmdoraError
from mmdora.layers import BIASES, kind_of

UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
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
    """The `adapter_config.json` of a plan with adapted modules.

    Every module is named in full. Scaling is written as alpha = scaling * rank, rsLoRA included, because PEFT has
    one `use_rslora` for all modules. Dropout is one for all too: it is written only where ours is.

    Args:
        plan: with at least one entry.
        ranks: module name -> rank of its tensors in the file, for every module that PEFT shall adapt.
        whole: modules trained in full.
        base: name or folder of the base.
    """
    alphas = {e.name: _whole(e.scaling * ranks[e.name]) for e in plan.entries if e.name in ranks}
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
        "target_modules": list(ranks),
        "modules_to_save": whole or None,
        "rank_pattern": {_exactly(name): value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {_exactly(name): value for name, value in alphas.items() if value != alpha},
    }


def plan_from_peft(
    model: nn.Module,
    config: Mapping[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
    before: Mapping[str, str],
    parts: ModelParts,
) -> Plan:
    """The plan of an adapter that PEFT wrote.

    Which modules are adapted, and at what rank, is read from the tensors; scaling from the config.

    Args:
        model: the untouched base.
        config: `adapter_config.json`.
        tensors: by name in the model; copies of the base's own embeddings, which PEFT adds, are taken out.
        folder: for messages.
        before: name of a module -> its name in the config, where an older transformers had another.
        parts: of the model.

    Raises:
        MmdoraError: a kind of adapter that mmdora has no layer for, a module the model does not have, or an
            embedding of another base.
    """
    _supported(config, folder)
    check_config(config, folder / "adapter_config.json")
    modules = dict(model.named_modules())
    _take_out_embeddings(tensors, modules, folder)
    entries: list[Entry] = []
    for key, tensor in tensors.items():
        if not (factor := re.fullmatch(r"(.+)\.(lora_A\.weight|lora_embedding_A)", key)):
            continue
        name = factor[1]
        if name not in modules:
            raise MmdoraError(f"{folder}: {type(model).__name__} has no module {name}; load the adapter's own base")
        rank = tensor.shape[0]
        method = "dora" if config.get("use_dora") else "lora"
        target = name
        owner = name.rpartition(".")[0]
        if isinstance(modules[owner], nn.MultiheadAttention) and f"{owner}.lora_A.weight" in tensors:
            target = owner  # PEFT adapts an attention whole
            lora_B = tensors.get(f"{name}.lora_B.weight")
            # PEFT cannot have trained an `out_proj` in any other way.
            if method == "lora" and lora_B is not None and lora_B.any():
                raise MmdoraError(f"{folder}: {name}: {TWICE}; merge this adapter with peft and load the checkpoint")
        scaling = scaling_in(config, before.get(target, target), rank)
        alpha = scaling * (math.sqrt(rank) if config.get("use_rslora") else rank)
        dropout = float(config.get("lora_dropout") or 0.0)
        if kind_of(modules[name]) is None:
            check_adaptable(model, parts, {name: rank})
        entry = entry_of(
            modules[name],
            name=name,
            modality=parts.of(name) or "other",
            method=method,
            rank=rank,
            alpha=alpha,
            scaling=scaling,
            dropout=dropout,
            because="tensors in PEFT's file",
        )
        entries.append(entry)
        if reason := unlike_peft(modules[name], tensor, magnitude=bool(config.get("use_dora"))):
            raise MmdoraError(f"{folder}: {name}: {reason}; load this adapter with peft")
    if not entries:
        raise MmdoraError(f"{folder}: no lora_A in the adapter's tensors")
    full = _in_full(model, config, tensors, folder, before)
    order = {name: index for index, name in enumerate(modules)}
    return build_plan(model, parts, sorted(entries, key=lambda entry: order[entry.name]), full)


def _in_full(
    model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path, before: Mapping[str, str]
) -> list[str]:
    """Parameters that the file brings whole: biases, `modules_to_save`, embeddings of a resized vocabulary.

    Raises:
        MmdoraError: of a tied weight one of the names is there and another is not.
    """
    wanted = [re.compile(rf"(.*\.)?{re.escape(module)}(\.|$)") for module in config.get("modules_to_save") or ()]
    biases = config.get("bias", "none") != "none"
    embeddings = {id(parameter) for parameter in _embeddings(model)}
    for shared in shared_parameters(model):
        if (there := [name for name in shared if name in tensors]) and len(there) < len(shared):
            other = next(name for name in shared if name not in tensors)
            raise MmdoraError(
                f"{folder}: {there[0]} and {other} are one tensor of this base (tied), and the adapter trained the "
                "first alone (modules_to_save without ensure_weight_tying), which one tensor cannot be; merge it with "
                "peft into an untied base, and load that"
            )
    return [
        name
        for name, parameter in model.named_parameters()
        if name in tensors
        and (
            biases
            or id(parameter) in embeddings
            or any(pattern.match(n) for pattern in wanted for n in (name, before.get(name, name)))
        )
    ]


def _embeddings(model: nn.Module) -> list[nn.Parameter]:
    """Weights of the token embedding and the head, which PEFT saves unasked where the vocabulary was resized."""
    found = [getattr(model, getter, lambda: None)() for getter in ("get_input_embeddings", "get_output_embeddings")]
    return [module.weight for module in found if module is not None]


def _take_out_embeddings(tensors: dict[str, Tensor], modules: Mapping[str, nn.Module], folder: Path) -> None:
    for key in [key for key in tensors if key.endswith(".base_layer.weight")]:
        name, copied = key.removesuffix(".base_layer.weight"), tensors.pop(key)
        own: Any = getattr(modules.get(name), "weight", None)
        if own is None or own.shape != copied.shape or not torch.equal(own.detach().cpu(), copied.to(own.dtype)):
            raise MmdoraError(f"{folder}: this adapter carries another {name} than this base's; load its own base")


def _supported(config: Mapping[str, Any], folder: Path) -> None:
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
    if not isinstance(config.get("modules_to_save") or [], list):
        raise MmdoraError(f"{where}: modules_to_save: expected a list of names")
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
