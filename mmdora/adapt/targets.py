"""Which modules of a modality a list of targets means: roles, names and glob patterns.

Linears have roles, as in PEFT's `all-linear`. So has `nn.MultiheadAttention`: its name means its fused in-projection,
and its `out_proj` is a linear of its own. Convolutions and embeddings have to be named (`patch_embedding`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mmdora.adapt.modality import ModelParts
from mmdora.errors import MmdoraError
from mmdora.layers import WEIGHTS, AdaptedExpertWeight, AdaptedLinear, ExpertWeight, is_experts, kind_of, places

ROLES = ("attention", "mlp", "experts", "all")

ATTENTION = re.compile(r"attn|attention", re.I)
MLP = re.compile(r"mlp|feed_?forward|ffn|intermediate|relu_?dense|gated_?dense", re.I)
"""Both patterns are looked for in the names and classes of the modules around a linear, the nearest module first."""

MLP_NAMES = re.compile(r"fc\d|lin\d|w[123]|wi(_\d)?|wo|linear_fc\d|(gate|up|down|gate_up)_proj|c_fc|c_proj")
"""Names of the linears of a feed-forward that has no module of its own inside its block (OPT, BART, T5)."""

ROUTERS = ("gate", "router", "shared_expert_gate")
"""Names of the linears that choose experts. They lie in the feed-forward, but no role means them: other experts for
a token are another model, so whoever wants to train that choice names them."""


@dataclass
class Candidates:
    """The modules of a modality that targets can mean, and those that are left out.

    Attributes:
        roles: module name -> role. A linear's role is attention, mlp, head, router, or linear where it is none of
            these. The role of another module is its kind: attention, conv, embedding or experts.
        refused: module name -> why it cannot be adapted.
        unused: module name -> why it never runs.
        experts: modules that hold 3-D parameters of experts, for which there is no adapter.
        parameters: name of what is adapted in experts -> the parameter's own name, by which targets can mean it too.
        bare: projections that an attention keeps as parameters of its own, as open_clip's `Attention` does.
    """

    roles: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    experts: list[str] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)
    bare: list[str] = field(default_factory=list)


class Refusals:
    """Why modules of a model cannot be adapted. Injecting and reading adapter files ask this same class.

    Attributes:
        modules: name -> module of the untouched model, or of its skeleton, and the parameters of its experts.
    """

    def __init__(self, model: nn.Module):
        self.modules = places(model)
        self._tied = _tied(model)

    def why(self, name: str) -> str | None:
        """Why the module `name` cannot be adapted, whatever the rank; None if it can."""
        module, (path, _, leaf) = self.modules[name], name.rpartition(".")
        parent = self.modules[path]
        if name in self._tied:
            return f"its weight is tied to {self._tied[name]}, which a merge would change too"
        if (kind := kind_of(module)) is None:
            return f"{type(module).__name__} is no linear, convolution, embedding or nn.MultiheadAttention"
        if reason := kind.problem(module):
            return reason
        above = self.why(path) if isinstance(parent, nn.MultiheadAttention) else None
        if reason := _read_by_torch(parent, above):
            return reason
        if _only_read(type(parent), leaf):
            return f"{type(parent).__name__} reads its weight and never calls it, so an adapter would do nothing"
        return None


def candidates_of(model: nn.Module, parts: ModelParts, modality: str) -> Candidates:
    """Every module of a modality that there is an adapter for, in the model's order."""
    refusals = Refusals(model)
    modules = refusals.modules
    get_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = get_head()
    unused = unused_in_tower(model, parts) if modality == "vision" else {}
    candidates = Candidates()
    weights = [module for module in modules.values() if isinstance(module, ExpertWeight)]
    for name, module in modules.items():
        if parts.of(name) != modality:
            continue
        if is_experts(name, module) and not any(isinstance(m, ExpertWeight) and m.owner is module for m in weights):
            candidates.experts.append(name)
        if (kind := kind_of(module)) is None:
            own = [f"{name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)]
            candidates.bare += [parameter for parameter in own if parameter.endswith("proj_weight")]
            continue
        if kind is AdaptedExpertWeight:
            candidates.parameters[name] = kind.parameter_name(name)
        reason = refusals.why(name)
        skipped = next((why for prefix, why in unused.items() if name.startswith(prefix + ".")), None)
        if skipped:
            candidates.unused[name] = skipped
        elif reason:
            candidates.refused[name] = reason
        else:
            role = _role(name, modules, parts) if issubclass(kind, AdaptedLinear) else kind.kind
            candidates.roles[name] = "head" if module is head else role
    return candidates


def resolve(candidates: Candidates, targets: Iterable[str], modality: str) -> dict[str, str]:
    """Names of the modules that the targets mean, in the model's order, with the reason: role and first target.

    Raises:
        MmdoraError: a target matches nothing, or names a module that cannot be adapted.
    """
    chosen: dict[str, str] = {}
    for target in targets:
        if target in ROLES:
            meant = ("attention", "mlp", "linear") if target == "all" else (target,)
            matched = {name: f"role {role}" for name, role in candidates.roles.items() if role in meant}
        else:
            pattern = any(sign in target for sign in "*?[")
            named = (name for name in candidates.roles if _means(target, name, candidates))
            matched = {name: "pattern" if pattern else "name" for name in named}
            barred = [name for name in candidates.refused if _means(target, name, candidates)]
            if barred and not (pattern and matched):
                raise MmdoraError(f"adapt.{modality}.targets: {barred[0]}: {candidates.refused[barred[0]]}")
        if not matched:
            raise MmdoraError(f"adapt.{modality}.targets: {target!r} matches nothing there; {_offer(candidates)}")
        chosen = {name: f"{what}, of targets: {target}" for name, what in matched.items()} | chosen
    return {name: chosen[name] for name in candidates.roles if name in chosen}


def _matches(name: str, target: str) -> bool:
    return fnmatchcase(name, target) or fnmatchcase(name, "*." + target)


def _means(target: str, name: str, candidates: Candidates) -> bool:
    return _matches(name, target) or _matches(candidates.parameters.get(name, name), target)


def _offer(candidates: Candidates) -> str:
    if not candidates.roles:
        return "this part has no module that can be adapted (method full trains it whole)"
    roles = sorted({role for role in candidates.roles.values() if role in ROLES})
    kinds = {"conv": "convolutions, by name only", "embedding": "embeddings, by name only", "experts": "of experts"}
    said = []
    if linears := _leaves(name for name, role in candidates.roles.items() if role not in kinds):
        said.append(f"roles there: {', '.join([*roles, 'all'])}; linears there: {linears}")
    for kind, what in kinds.items():
        if leaves := _leaves(name for name, role in candidates.roles.items() if role == kind):
            said.append(f"{what}: {leaves}")
    return "; ".join(said)


def _leaves(names: Iterable[str]) -> str:
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    return ", ".join(leaves[:12]) + (", ..." if len(leaves) > 12 else "")


def _read_by_torch(parent: nn.Module, refused: str | None) -> str | None:
    """Why an adapter on a module would never act, because a module of torch around it reads its weight.

    Args:
        parent: the module around it.
        refused: the reason why `parent` cannot be adapted itself; None if it can, and then it calls the module.
    """
    if isinstance(parent, nn.TransformerEncoderLayer):
        return "nn.TransformerEncoderLayer reads its weight in evaluation, so an adapter would do nothing there"
    if isinstance(parent, nn.MultiheadAttention) and refused:
        return f"the nn.MultiheadAttention around it reads its weight and cannot be adapted: {refused}"
    return None


@cache
def _only_read(parent: type[nn.Module], leaf: str) -> bool:
    """Whether the code of this class reads `self.leaf.weight` and uses `self.leaf` in no other way.

    An adapter acts where its module is called. A weight may also be read elsewhere, beside being called (SigLIP and
    CLIP do that to interpolate `position_embedding`); this finds only the certain case, a weight that is never called.
    """
    own = [kind for kind in parent.__mro__ if kind is not object and not kind.__module__.startswith("torch.")]
    try:
        lines = [line for kind in own for line in _lines_of(kind) if "init" not in line]
    except (OSError, TypeError):
        return False
    uses = [use for line in lines for use in re.findall(rf"\bself\.{re.escape(leaf)}\b(?!\s*=[^=])([\w.]*)", line)]
    read = [use for use in uses if re.match(r"\.weight\b(?!\.(dtype|device|shape|size|ndim)\b)", use)]
    return bool(read) and all(use.startswith(".") for use in uses)


@cache
def _lines_of(kind: type) -> list[str]:
    """The code of a class, to find which Python parses the whole file."""
    return inspect.getsource(kind).splitlines()


def _role(name: str, modules: dict[str, nn.Module], parts: ModelParts) -> str:
    """The role of a linear by the modules that it lies in: attention, mlp, or linear for neither."""
    path, _, leaf = name.rpartition(".")
    parent = path.rpartition(".")[2]
    roots = {prefix for prefixes in (parts.vision, parts.projector, parts.language) for prefix in prefixes}
    while path and path not in roots:
        label = f"{path.rpartition('.')[2]} {type(modules[path]).__name__}"
        if ATTENTION.search(label) and not isinstance(modules[path], GradientCheckpointingLayer):
            return "attention"
        if MLP.search(label):
            return "router" if leaf in ROUTERS else "mlp"
        path = path.rpartition(".")[0]
    return "mlp" if MLP_NAMES.fullmatch(leaf) or parent == "output" else "linear"


def _tied(model: nn.Module) -> dict[str, str]:
    """Name of a module whose weight is tied -> the name of another parameter that is the same tensor."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {
        name.rpartition(".")[0]: next(other for other in shared if other != name)
        for shared in names.values()
        if len(shared) > 1
        for name in shared
        if name.rpartition(".")[2] in WEIGHTS
    }


def unused_in_tower(model: nn.Module, parts: ModelParts) -> dict[str, str]:
    """Modules of the tower that never run, with the reason: layers behind `vision_feature_layer` and pooling heads."""
    config = getattr(model, "config", None)
    layer = getattr(config, "vision_feature_layer", getattr(config, "vision_feature_layers", None))
    chosen = [layer] if isinstance(layer, int) else list(layer or [])
    unused = {}
    for name, module in model.named_modules():
        if parts.of(name) != "vision":
            continue
        if "PoolingHead" in type(module).__name__:
            unused[name] = "the pooling head does not reach the projector"
        if not (chosen and isinstance(module, nn.ModuleList) and _blocks(module)):
            continue
        needed = max(index if index >= 0 else len(module) + 1 + index for index in chosen)
        for index in range(needed, len(module)):
            unused[f"{name}.{index}"] = f"it does not run: vision_feature_layer is {layer}"
    return unused


def _blocks(module: nn.ModuleList) -> bool:
    return len(module) > 0 and all(isinstance(child, GradientCheckpointingLayer) for child in module)
