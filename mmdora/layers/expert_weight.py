"""Which parameters of a model are matrices of experts, and which way round they are stored."""

from __future__ import annotations

import inspect
import re
from functools import cache

from torch import nn

SUFFIX = "_proj"
"""The end of the names of the parameters that are adapted: `gate_up_proj`, `up_proj`, `down_proj`."""


class ExpertWeight(nn.Module):
    """One 3-D parameter of a module of experts, as the plain module that an adapter of it is made for.

    It stands in no model. Its name in plans is that of the parameter without `_proj`: `experts.gate_up`.

    Args:
        owner: the module of experts, plain or an `AdaptedExperts`.
        leaf: the name of the parameter in it, [E, O, I], or [E, I, O] if `transposed`.
    """

    owner: nn.Module
    leaf: str
    weight: nn.Parameter
    transposed: bool | None
    experts: int

    def __init__(self, owner: nn.Module, leaf: str):
        super().__init__()
        self.__dict__["owner"] = owner
        self.leaf, self.training = leaf, owner.training
        self.register_parameter("weight", owner._parameters[leaf])
        self.transposed = orientation(getattr(owner, "shell", owner), leaf)
        self.experts, *sizes = owner._parameters[leaf].shape  # pyright: ignore
        self.rows, self.columns = reversed(sizes) if self.transposed else sizes


def expert_weights(name: str, module: nn.Module) -> dict[str, ExpertWeight]:
    """Name in plans -> parameter of each expert that may be adapted, for a module that holds experts; else nothing."""
    if not is_experts(name, module):
        return {}
    leaves = [leaf for leaf, own in module._parameters.items() if own is not None and own.dim() == 3]
    return {
        f"{name}.{leaf.removesuffix(SUFFIX)}": ExpertWeight(module, leaf)
        for leaf in leaves
        if leaf.endswith(SUFFIX) and not hasattr(module, leaf.removesuffix(SUFFIX))
    }


def is_experts(name: str, module: nn.Module) -> bool:
    """Whether a module of this name holds the weights of experts as 3-D parameters."""
    if isinstance(module, ExpertWeight):
        return False
    named = "expert" in (name.rpartition(".")[2] + type(module).__name__).lower()
    return named and any(own is not None and own.dim() == 3 for own in module._parameters.values())


def orientation(owner: nn.Module, leaf: str) -> bool | None:
    """Whether a parameter of experts is stored [E, I, O]; None if the model does not tell.

    Experts that transformers dispatches say it themselves (`is_transposed`). Of others the code tells: `linear` takes
    [O, I], and a product from the left takes [I, O]. `ExpertsView` checks it again in each forward.
    """
    told = getattr(owner, "is_transposed", None)
    return told if isinstance(told, bool) else _as_written(type(owner), leaf)


@cache
def _as_written(kind: type[nn.Module], leaf: str) -> bool | None:
    try:
        lines = inspect.getsource(kind.forward).splitlines()
    except (OSError, TypeError):
        return None
    found = set()
    for line in lines:
        for turned in re.findall(rf"self\.{leaf}\b(?:\[[^]]*\])?(\.transpose|\.mT|\.T\b)?", line):
            if "linear(" in line:
                found.add(bool(turned))
            elif re.search(r"\b(bmm|matmul|mm)\(|@", line):
                found.add(not turned)
    return found.pop() if len(found) == 1 else None
