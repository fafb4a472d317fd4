"""An adapted module's tensors as PEFT's adapter files hold them.

PEFT knows one `use_dora` for all modules and no rank 0. So when any module of a file has a magnitude, a LoRA module
is written with magnitude ||W0 + s B A||, which changes nothing, and a magnitude alone with B A = 0 of the least rank.

    linear      lora_A.weight [R, I]        lora_B.weight [O, R]             lora_magnitude_vector [O]
    conv        lora_A.weight [R, C, K]     lora_B.weight [O, R/G, 1...]     lora_magnitude_vector [1, O, 1...]
    embedding   lora_embedding_A [R, V]     lora_embedding_B [D, R]          lora_magnitude_vector [D]
    attention   lora_A.weight [R, E]        lora_B.weight [3E, R]            lora_magnitude_vector [3E]
    experts     see `mmdora.adapter_files.experts`

The tensors of an attention are those of its fused in-projection; its `out_proj` is a linear. PEFT has LoRA for both
together, and no DoRA. Only the A of a grouped convolution differs from ours in a file: see `AdaptedConv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmdora.adapter_files import experts
from mmdora.layers import Adapted, AdaptedAttention, AdaptedConv, AdaptedEmbedding, AdaptedExpertWeight, kind_of

KEYS = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
EMBEDDING_KEYS = {**KEYS, "lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}

TWICE = "PEFT adds the update of the out_proj of an nn.MultiheadAttention twice (peft#3774)"


def keys_of(kind: type[Adapted] | None) -> dict[str, str]:
    """The name of our parameter -> its key in a file, which follows the module's name there."""
    return EMBEDDING_KEYS if kind is AdaptedEmbedding else KEYS


def file_rank(base: nn.Module, rank: int) -> int:
    """The rank that a module is written with: its own, or, for a magnitude alone, the smallest that PEFT reads."""
    return rank or int(getattr(base, "groups", 1))


def file_shapes(base: nn.Module, rank: int, *, magnitude: bool) -> dict[str, tuple[int, ...]]:
    """Key -> shape in a file, beside this module (plain or adapted); `magnitude`: whether the file has magnitudes."""
    kind: Any = kind_of(base)
    shapes = kind.shapes(base, file_rank(base, rank))
    if kind is AdaptedConv:
        filters, _, *kernel = shapes["lora_A"]
        shapes["lora_A"] = (filters, base.in_channels, *kernel)
        shapes["magnitude"] = (1, *shapes["magnitude"], *(1 for _ in kernel))
    if kind is AdaptedExpertWeight:
        shapes = experts.file_shapes(shapes, base)
    if not magnitude:
        del shapes["magnitude"]
    return {keys_of(kind)[name]: shape for name, shape in shapes.items()}


def to_file(module: Adapted, *, magnitude: bool) -> dict[str, Tensor]:
    """Key in a file -> tensor of an adapted module, which may be the very parameter of the module.

    Gates are folded into A, which PEFT then multiplies by as the module does.
    """
    shapes = file_shapes(module, module.rank, magnitude=magnitude)
    tensors = {}
    flat: dict[str, Tensor] = {}
    if isinstance(module, AdaptedExpertWeight) and module.gated_A is not None and module.lora_B is not None:
        flat = dict(zip(("lora_A", "lora_B"), experts.flat(module.gated_A, module.lora_B, module), strict=True))
    for name, key in keys_of(type(module)).items():
        if key not in shapes:
            continue
        own = flat.get(name, module.gated_A if name == "lora_A" else getattr(module, name))
        if name == "magnitude":
            own = (module.row_norm() if own is None else own).view(shapes[key])
        elif own is None:
            own = torch.zeros(shapes[key], device=module.base_weight.device)
        elif name == "lora_A" and isinstance(module, AdaptedConv):
            own = _spread(own, module.groups)
        tensors[key] = own.detach()
    return tensors


def from_file(module: Adapted, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
    """Fill an adapted module from tensors by `prefix` and key, of the shapes that `file_shapes` gives."""
    keys, apart = keys_of(type(module)), {}
    if isinstance(module, AdaptedExpertWeight) and module.lora_A is not None:
        factors = (tensors[prefix + keys[name]] for name in ("lora_A", "lora_B"))
        apart = dict(zip(("lora_A", "lora_B"), experts.apart(*factors, base=module), strict=True))
    with torch.no_grad():
        for name, key in keys.items():
            own = getattr(module, name)
            if own is None:
                continue
            tensor = apart[name] if name in apart else tensors[prefix + key]
            if name == "lora_A" and isinstance(module, AdaptedConv):
                tensor = _gather(tensor, module.groups)
            own.copy_(tensor.reshape(own.shape))
        if module.gate is not None:
            module.gate.fill_(1)


def unlike_peft(module: nn.Module, lora_A: Tensor | None = None, *, magnitude: bool) -> str | None:
    """Say why PEFT computes something else than `AdaptedConv` for this module, plain or adapted; None if it does not.

    Args:
        lora_A: as in a file [R, C, K], if its values are to be looked at.
        magnitude: whether the file has magnitudes.
    """
    if kind_of(module) is not AdaptedConv:
        return None
    conv: Any = getattr(module, "shell", module)
    if conv.groups > 1 and magnitude:
        return f"PEFT mixes the {conv.groups} groups of this convolution up in DoRA's norm"
    if (
        conv.groups > 1
        and lora_A is not None
        and not torch.equal(_spread(_gather(lora_A, conv.groups), conv.groups), lora_A)
    ):
        return f"its filters see channels of all {conv.groups} groups, which no grouped convolution can hold"
    if any(step > 1 and size > 1 for step, size in zip(conv.dilation, conv.kernel_size, strict=True)):
        return "PEFT's low-rank convolution has no dilation, and this one has"
    if conv.padding_mode != "zeros" and any(conv._reversed_padding_repeated_twice):
        return f"PEFT's low-rank convolution is padded with zeros, and this one by {conv.padding_mode!r}"
    return None


def wrong_in_peft(module: nn.Module, *, magnitude: bool) -> str | None:
    """Say why PEFT refuses a file of this adapted module or reads it wrongly; None if it does neither."""
    if isinstance(module, AdaptedExpertWeight):
        return "PEFT has no DoRA for the parameters of experts" if magnitude else None
    if not isinstance(module, AdaptedAttention):
        return None
    if magnitude:
        return "PEFT has no DoRA for nn.MultiheadAttention"
    return TWICE if isinstance(module.out_proj, Adapted) else None


def _spread(lora_A: Tensor, groups: int) -> Tensor:
    """[R, C/G, K] to [R, C, K], zeros where a filter and a channel are of different groups."""
    if groups == 1:
        return lora_A
    filters, channels, *kernel = lora_A.shape
    wide = lora_A.new_zeros(groups, filters // groups, groups, channels, *kernel)
    for group, block in enumerate(lora_A.split(filters // groups)):
        wide[group, :, group] = block
    return wide.view(filters, groups * channels, *kernel)


def _gather(lora_A: Tensor, groups: int) -> Tensor:
    """[R, C, K] to [R, C/G, K]: each filter keeps the channels of its group."""
    blocks = lora_A.unflatten(1, (groups, -1)).unflatten(0, (groups, -1))  # [G, R/G, G, C/G, K]
    return torch.cat([blocks[group, :, group] for group in range(groups)])
