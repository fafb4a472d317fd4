"""Takes an adapter off its base and puts it on again: the base for a while, or one of several named adapters.

Nothing is merged or copied: adapted modules share the base's weights, so switching replaces modules in the tree. What
an adapter trains in full lies beside the base's own parameter if the base was kept (`inject(…, keep_base=True)`, or a
named adapter), and then the two are exchanged.

Two threads must not switch or run one model at the same time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmdora.adapt.plan import Plan
from mmdora.errors import MmdoraError
from mmdora.layers import Adapted

PLAN, KEPT, NAMED, IN_USE = "mmdora_plan", "mmdora_base", "mmdora_adapters", "mmdora_in_use"
"""Attributes of a model: the plan that is carried out in it; the base's own parameters, by name, in whose places others
train; the named adapters; the name of the one in use."""


@dataclass(frozen=True)
class Adapter:
    """The parts of an adapter that are put into a base.

    Attributes:
        modules: name -> adapted module, a module before those in it.
        full: name -> parameter that was trained in full; empty if the base's own was trained.
    """

    plan: Plan
    modules: Mapping[str, Adapted]
    full: Mapping[str, nn.Parameter]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the adapter needs beside the base."""
        own = [part for module in self.modules.values() for part in module.own_parameters]
        tensors: dict[int, Tensor] = {id(part): part for part in [*own, *self.full.values()]}
        return sum(tensor.nbytes for tensor in tensors.values())


def plan_of(model: nn.Module) -> Plan | None:
    """The plan by which a model was adapted; None for a model that is not adapted, or whose adapters are all off."""
    return getattr(model, PLAN, None)


def adapted_modules(model: nn.Module) -> dict[str, Adapted]:
    """Name -> adapted module, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def adapters_of(model: nn.Module) -> dict[str, Adapter]:
    """Name -> named adapter, of a model that has some."""
    return getattr(model, NAMED, {})


@contextmanager
def disable(model: nn.Module) -> Iterator[nn.Module]:
    """Take the adapter off inside the block: the model is the base, bit for bit, and is not adapted.

    Raises:
        MmdoraError: not adapted; parts were trained in full in the place of the base's (`inject(…, keep_base=True)`
            keeps them); or the model was adapted inside the block.
    """
    if plan_of(model) is None and not adapters_of(model):
        raise MmdoraError("disable: this model is not adapted; call mmdora.inject or mmdora.load_adapter first")
    if plan_of(model) is None:  # There are adapters, and none is in use.
        yield model
        return
    adapter = take_off(model)
    try:
        yield model
    finally:
        if plan_of(model) is not None:
            raise MmdoraError("disable: the model was adapted inside the block; leave the block first")
        put_on(model, adapter)


def use(model: nn.Module, name: str | None) -> nn.Module:
    """Put one of the model's named adapters on, in place of the one in use; None is the base alone.

    Raises:
        MmdoraError: there is none of this name; or several are named at once.
    """
    adapters = adapters_of(model)
    if isinstance(name, (Mapping, list, tuple, set)):
        raise MmdoraError(
            "use: one adapter at a time. DoRA divides by a norm, so a sum of adapters is none; a weighted sum of their "
            "merged weights is mmdora.merge(model, weights={…})"
        )
    if name is not None and name not in adapters:
        known = ", ".join(map(repr, adapters)) or "none; mmdora.load_adapter(model, folder, name=…) adds one"
        raise MmdoraError(f"use: no adapter {name!r} on this model; there is {known}")
    if name != getattr(model, IN_USE, None):
        if plan_of(model) is not None:
            take_off(model)
        if name is not None:
            put_on(model, adapters[name])
        setattr(model, IN_USE, name)
    return model


@contextmanager
def adding(model: nn.Module, name: str) -> Iterator[None]:
    """Add a named adapter: inside the block the model is the base, and is adapted with `keep_base`.

    Afterwards the new adapter is in use. If the block raises, the one before is.

    Raises:
        MmdoraError: the model has an adapter without a name, or one of this name.
    """
    adapters, before = adapters_of(model), getattr(model, IN_USE, None)
    if plan_of(model) is not None and before is None:
        raise MmdoraError(f"{name}: this model has an adapter without a name; load the base again, and name each")
    if not name or name in adapters:
        raise MmdoraError(f"{name!r}: each adapter on a model needs a name of its own; there is {list(adapters)}")
    use(model, None)
    try:
        yield
    except BaseException:
        if plan_of(model) is not None:
            take_off(model)
        use(model, before)
        raise
    plan = plan_of(model)
    assert plan is not None
    full = {full: model.get_parameter(full) for full in plan.full}
    setattr(model, NAMED, {**adapters, name: Adapter(plan, adapted_modules(model), full)})
    setattr(model, IN_USE, name)


def reference(model: nn.Module) -> Any:
    """The base of an adapted model as a model of its own that shares its weights, for trainers that want a second one.

    It holds no weight twice, is in `eval()` mode and stays the base while the adapter trains.

    Raises:
        MmdoraError: in the cases of `disable`.
    """
    with disable(model):
        adapters = model.__dict__.pop(NAMED, None)
        try:
            shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
            twin = copy.deepcopy(model, shared)  # pyright: ignore[reportArgumentType]
            forget(twin)
            return twin.eval()
        finally:
            if adapters is not None:
                setattr(model, NAMED, adapters)


def take_off(model: nn.Module) -> Adapter:
    """Put plain modules, and the base's own parameters, in the places of an adapter's; what was taken off is returned.

    Raises:
        MmdoraError: parts were trained in full, and the base was not kept. The model is untouched then.
    """
    plan, kept = plan_of(model), getattr(model, KEPT, {})
    assert plan is not None
    if plan.full and not kept:
        raise MmdoraError(
            f"{len(plan.full)} tensors, such as {plan.full[0]}, were trained in full, so the base's are gone; load the "
            "base again, adapt with mmdora.inject(…, keep_base=True), or name the adapter in mmdora.load_adapter"
        )
    adapter = Adapter(plan, adapted_modules(model), {name: model.get_parameter(name) for name in plan.full})
    for name, module in reversed(list(adapter.modules.items())):  # those in a module before the module
        model.set_submodule(module.place(name), module.base_module())
    for name, own in kept.items():
        place_of = model.get_parameter(name)
        own.data = own.data.to(place_of.device, place_of.dtype)  # The model may have been moved meanwhile.
    exchange(model, kept)
    del model.mmdora_plan
    model.__dict__.pop(KEPT, None)
    return adapter


def put_on(model: nn.Module, adapter: Adapter) -> None:
    """Put an adapter that `take_off` gave back on its base. Modes of training and devices are the base's."""
    if adapter.full:
        setattr(model, KEPT, {name: model.get_parameter(name) for name in adapter.full})
        for name, own in adapter.full.items():
            place_of = model.get_parameter(name)
            own.data = own.data.to(place_of.device, place_of.dtype)
    exchange(model, adapter.full)
    for name, module in adapter.modules.items():
        training = model.get_submodule(module.place(name)).training
        for part in module.own_parameters:
            if part.device != module.base_weight.device:
                part.data = part.data.to(module.base_weight.device)
        installed = module.install().train(training)
        module.refresh()
        model.set_submodule(module.place(name), installed)
    setattr(model, PLAN, adapter.plan)


def exchange(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put parameters into the places of those of these names, and of what is tied to them."""
    if not parameters:
        return
    new = {id(model.get_parameter(name)): parameter for name, parameter in parameters.items()}
    for module in model.modules():
        for leaf, own in module._parameters.items():
            if own is not None and id(own) in new:
                module._parameters[leaf] = new[id(own)]


def forget(model: nn.Module) -> None:
    """Remove what a model knows about adapters; its modules are plain by now."""
    for attribute in (PLAN, KEPT, NAMED, IN_USE):
        model.__dict__.pop(attribute, None)
