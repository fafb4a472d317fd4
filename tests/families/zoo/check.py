"""What DoRA has to do on any architecture: on each part alone, on all together, and PEFT's on every linear layer."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from mmdora.adapt.inject import inject, make_plan, merge, trainable_parameters, unload
from mmdora.adapter_files.adapters import load_adapter, save_adapter
from mmdora.config import MODALITIES
from mmdora.errors import MmdoraError
from mmdora.layers import AdaptedAttention, AdaptedEmbedding

CLOSE = 1e-4
"""max|a - b| / max(1, max|b|) that rounding in fp32 explains."""
ALL = "all"


class FailedError(Exception):
    """What an adapter did not do."""


def check(base: nn.Module) -> dict[str, int]:
    """DoRA on a model by each part that has a layer to adapt, and on all of them.

    Each adapted layer gets random inputs. It starts as the base's; A, B and magnitude get a gradient; and after a
    merge, or after saving and loading, it gives what the adapted one gave. The whole model does so too, for words and
    for pictures, where its forward takes inputs of the usual form. Without the adapter, all tensors are the base's.

    Returns:
        Part, or "all" -> adapted layers.

    Raises:
        FailedError: with what went wrong.
    """
    there = tuple(part for part in MODALITIES if _has_layers(base, part))
    chosen = {part: (part,) for part in there} | {ALL: there}
    return {name: _check(base, parts) for name, parts in chosen.items()}


def _settings(parts: tuple[str, ...]) -> dict[str, Any]:
    return {part: {"method": "dora", "rank": 2} for part in parts}


def _has_layers(base: nn.Module, part: str) -> bool:
    """Whether a part has a layer that is adapted without being named."""
    try:
        make_plan(base, _settings((part,)))
    except MmdoraError as error:
        if "matches nothing" in str(error) or f"has no {part} part" in str(error):
            return False
        raise
    return True


def _check(base: nn.Module, parts: tuple[str, ...]) -> int:
    model = copy.deepcopy(base)
    plan = inject(model, _settings(parts))
    names = [entry.name for entry in plan.entries if entry.kind != "expert"]
    for name in names:
        module = model.get_submodule(name)
        _same(f"{name} at its start", _layer(module), _layer(base.get_submodule(name)))
        _learns(name, module)
    _all_same("at the start", _whole(model), _whole(base))
    _shake(model)
    layers, whole = {name: _layer(model.get_submodule(name)) for name in names}, _whole(model)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder, base="zoo")
        again = copy.deepcopy(base)
        load_adapter(again, folder)
    merged = merge(copy.deepcopy(model))
    for how, other in (("read back", again), ("merged", merged)):
        for name in names:
            _same(f"{name} {how}", _layer(other.get_submodule(name)), layers[name])
        _all_same(how, _whole(other), whole)
    after = unload(model).state_dict()
    if set(after) != set(base.state_dict()):
        raise FailedError("the names of tensors are others after unloading")
    for name, value in base.state_dict().items():
        if not torch.equal(after[name], value):
            raise FailedError(f"{name} is another tensor after unloading")
    return len(plan.entries)


def peft_works(base: nn.Module) -> None:
    """PEFT's DoRA on all linear layers: it starts as the base, and gives the same merged.

    Raises:
        Exception: whatever PEFT raises; FailedError if it gives something else.
    """
    settings = LoraConfig(r=2, use_dora=True, target_modules="all-linear", init_lora_weights=False)
    model: Any = get_peft_model(copy.deepcopy(base), settings)  # type: ignore[arg-type]
    whole = _whole(model.get_base_model())  # The wrapper has none of the base's ways to read pictures.
    _all_same("merged", _whole(model.merge_and_unload()), whole)


def _layer(module: nn.Module) -> Tensor:
    """What a layer, plain or adapted, gives for random inputs."""
    owner: Any = module
    random = torch.Generator().manual_seed(1)
    if isinstance(module, (nn.Embedding, AdaptedEmbedding)):
        return owner(torch.arange(owner.weight.shape[0]))
    if isinstance(module, (nn.MultiheadAttention, AdaptedAttention)):
        states = torch.randn(2, 2, owner.embed_dim, generator=random)
        return owner(states, states, states, need_weights=False)[0]
    if hasattr(owner, "in_features"):
        return owner(torch.randn(3, owner.in_features, generator=random))
    if hasattr(owner, "kernel_size"):
        sides = [side * max(step, 1) + 2 for side, step in zip(owner.kernel_size, owner.dilation, strict=True)]
        return owner(torch.randn(2, owner.in_channels, *sides, generator=random))
    return owner(torch.randn(3, owner.weight.shape[0], generator=random))  # GPT-2's Conv1D.


def _whole(model: nn.Module) -> dict[str, Tensor | None]:
    """The logits for a few words, and the features of a picture; None where the forward takes other inputs."""
    owner: Any = model
    config: Any = owner.config
    ids = torch.arange(100, 108)[None]
    seen: Any = getattr(config, "vision_config", None) or config
    side = getattr(seen, "image_size", None) or 32
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    random = torch.Generator().manual_seed(2)
    pixels = torch.randn(1, 3, height, width, generator=random)
    patch = getattr(seen, "patch_size", 8)
    numbers = 3 * getattr(seen, "temporal_patch_size", 1) * (patch if isinstance(patch, int) else 8) ** 2
    flat = torch.randn(16, numbers, generator=random)
    forms: tuple[Mapping[str, Tensor], ...] = (
        {"pixel_values": pixels},
        {"pixel_values": flat, "image_grid_thw": torch.tensor([[1, 4, 4]])},
        {"pixel_values": pixels[None], "image_sizes": torch.tensor([[height, width]])},
        {"pixel_values": pixels[None]},
    )
    reading = getattr(owner, "get_image_features", None) or getattr(
        getattr(owner, "model", None), "get_image_features", None
    )
    whole = {"pixel_values": pixels, "input_ids": ids}
    return {
        "words": _first(owner, ({"input_ids": ids}, {"input_ids": ids, "decoder_input_ids": ids})),
        "pictures": _first(owner, (whole,)) if reading is None else _first(reading, forms),
    }


@torch.no_grad()
def _first(function: Any, forms: tuple[Mapping[str, Tensor], ...]) -> Tensor | None:
    """What a function gives for the first inputs that it takes."""
    for inputs in forms:
        try:
            torch.manual_seed(0)
            made = function(**inputs)
        except Exception:  # Each family's forward has inputs of its own, and says in its own way that others are wrong.
            continue
        for value in (getattr(made, "logits", None), getattr(made, "pooler_output", None), made):
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(value, Tensor) and bool(value.isfinite().all()):
                return value
    return None


def _learns(name: str, module: nn.Module) -> None:
    """The parameters of an adapted layer get a gradient; that of A is 0 as long as B is."""
    trained = {leaf: value for leaf, value in module.named_parameters() if value.requires_grad}
    output = _layer(module)
    (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum().backward()
    for leaf, value in trained.items():
        if value.grad is None or not ("lora_A" in leaf or bool(value.grad.any())):
            raise FailedError(f"{name}.{leaf} gets no gradient")
        value.grad = None


def _shake(model: nn.Module) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for _, parameter, _, kind in trainable_parameters(model):
            if kind == "magnitude":
                parameter *= 1 + 0.2 * torch.rand_like(parameter)
            else:
                parameter += 0.05 * torch.randn_like(parameter)


def _all_same(how: str, ours: Mapping[str, Tensor | None], theirs: Mapping[str, Tensor | None]) -> None:
    for kind, one in ours.items():
        other = theirs[kind]
        if (one is None) != (other is None):
            raise FailedError(f"{kind} {how}: only one of the two models takes the inputs")
        if one is not None and other is not None:
            _same(f"{kind} {how}", one, other)


def _same(what: str, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape or not ours.isfinite().all():
        raise FailedError(f"{what}: {list(ours.shape)} instead of {list(theirs.shape)}, or not finite")
    away = float((ours - theirs).detach().abs().max() / theirs.detach().abs().max().clamp(min=1))
    if not away <= CLOSE:
        raise FailedError(f"{what}: differs by {away:.1e}")


def takes(model: nn.Module) -> str:
    """Which whole forwards are compared, for the table."""
    return ", ".join(kind for kind, value in _whole(model).items() if value is not None) or "layers alone"
