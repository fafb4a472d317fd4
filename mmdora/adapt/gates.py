"""Makes ordinary adapters of a model's gated ones."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from mmdora.adapt.plan import Plan
from mmdora.adapt.switch import PLAN, adapted_modules, plan_of
from mmdora.layers.gates import fold_gate


def gated(model: nn.Module) -> bool:
    """Whether an adapted module of this model has gates."""
    return any(module.gate is not None for module in adapted_modules(model).values())


def closed(model: nn.Module) -> tuple[int, int]:
    """The number of gates at zero, and of all gates."""
    gates = [module.gate for module in adapted_modules(model).values() if module.gate is not None]
    return sum(int((gate == 0).sum()) for gate in gates), sum(gate.numel() for gate in gates)


def fold_gates(model: nn.Module) -> Plan | None:
    """Fold all gates and take closed components out, in place; the outputs stay the same.

    Returns:
        The plan by which the model is adapted from here on, with the ranks that are left; None if it is not adapted.
    """
    plan = plan_of(model)
    if plan is None or not gated(model):
        return plan
    modules, entries = adapted_modules(model), []
    for entry in plan.entries:
        module = modules[entry.name]
        fold_gate(module)
        entries.append(
            replace(
                entry,
                method=module.method,
                rank=module.rank,
                alpha=entry.scaling * module.rank,
                dropout=module.dropout,
                parameters=sum(own.numel() for own in module.own_parameters),
            )
            if module.rank != entry.rank
            else entry
        )
    plan = replace(plan, entries=tuple(entries))
    setattr(model, PLAN, plan)
    return plan
