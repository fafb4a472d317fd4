"""The scale c = m / n of an adapted module, computed once per optimizer step, in eager mode and in compiled graphs.

n changes only when a parameter is written. That raises the parameter's version, or is a `torch.optim` step (the fused
ones raise no version), or goes through the module (`load_state_dict`, `to`), which forgets the scale. So it is kept
until one of these happens, and gradient accumulation and recomputation pay nothing. Nobody can see a write through
`.data` that is none of these: after it, call `refresh`.

A version cannot be read inside a compiled graph. There the scale comes from an operator of our own: to the compiler a
function of the parameters, at run time the same look-up. Nothing has to be refreshed from outside, no graph breaks,
and one compiled block serves all layers of its shape.

FSDP gathers parameters into buffers whose version and address say nothing about writes, and a CUDA graph replays what
it captured: in both the scale is computed in each forward.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from mmdora.errors import MmdoraError
from mmdora.ops import linear, norm

if TYPE_CHECKING:
    from mmdora.layers.adapted import Adapted

_steps = 0
_slots = count()
_known: weakref.WeakValueDictionary[int, Scales] = weakref.WeakValueDictionary()


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)


class Stamp:
    """Says whether tensors are the same objects as before, with nothing written to them."""

    def __init__(self, tensors: Sequence[Tensor], steps: int):
        self._references = [weakref.ref(tensor) for tensor in tensors]
        self._state = self._read(tensors, steps)

    def fits(self, tensors: Sequence[Tensor], steps: int) -> bool:
        for reference, tensor in zip(self._references, tensors, strict=True):
            if reference() is not tensor:
                return False
        return self._state == self._read(tensors, steps)

    @staticmethod
    def _read(tensors: Sequence[Tensor], steps: int) -> list[int]:
        return [steps, *[t._version for t in tensors], *[t.data_ptr() for t in tensors]]


class Scales:
    """The squared base norms and the `Scale` of one adapted module."""

    def __init__(self, module: Adapted):
        self._module = weakref.ref(module)
        # The module's number as data: a plain int would be burnt into a compiled graph, one graph for each layer.
        self.slot = torch.tensor(next(_slots), device="cpu")
        _known[int(self.slot)] = self
        self.forget()

    def forget(self) -> None:
        self._base: tuple[Stamp, Tensor] | None = None
        self._scale: tuple[Stamp, linear.Scale] | None = None

    def of(self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor) -> linear.Scale:
        """The scale of the module's parameters: the kept one, if nothing was written since."""
        own = [weight, magnitude] if lora_A is None or lora_B is None else [weight, magnitude, lora_A, lora_B]
        seen = self._sees(own)
        if seen and self._scale is not None and self._scale[0].fits(own, _steps):
            return self._scale[1]
        scaled = self.computed(weight, lora_A, lora_B, magnitude)
        if seen:
            self._scale = Stamp(own, _steps), scaled
        return scaled

    def computed(self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor) -> linear.Scale:
        """The scale of any parameters of these shapes."""
        if magnitude.dtype.itemsize < 4:
            raise MmdoraError(
                f"a magnitude came to forward in {magnitude.dtype}, which rounds its changes away; "
                "leave param_dtype out of FSDP's MixedPrecisionPolicy and use autocast instead"
            )
        # What is computed in inference mode could not be saved for a later backward.
        with torch.inference_mode(False), torch.no_grad():
            n = self.row_norm(weight, lora_A, lora_B)
            # Whether z must be kept takes a look at c, which waits for the device: not in each forward.
            return linear.scale(magnitude, n, keep=None if self._sees([weight]) else True)

    def row_norm(self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None) -> Tensor:
        """||W0 + s B A|| [O], fp32 or better, outside autograd."""
        module = self.module
        with torch.no_grad():
            matrix = module.matrix(weight)
            if self._base is not None and self._sees([weight]) and self._base[0].fits([weight], 0):
                base = self._base[1]
            else:
                base = norm.squared_norm(matrix)
                self._base = (Stamp([weight], 0), base) if self._sees([weight]) else None
            if lora_A is None or lora_B is None:
                return base.sqrt()
            factors = module.factors(lora_A, lora_B)
            return norm.row_norm(matrix, *factors, module.scaling, base, exact=not _captured(weight))

    @property
    def module(self) -> Adapted:
        module = self._module()
        assert module is not None
        return module

    def _sees(self, tensors: Sequence[Tensor]) -> bool:
        """Whether writes to these can be seen."""
        if "_is_fsdp_managed_module" in self.module.__dict__ or _captured(tensors[0]):
            return False
        return not any(tensor.is_inference() for tensor in tensors)


def _captured(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


@torch.library.custom_op("mmdora::scale", mutates_args=())
def _scale(
    slot: Tensor, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor
) -> tuple[Tensor, Tensor]:
    """Factor and inverse norm of the module with this slot; copies, which the compiler may overwrite.

    The arguments are the module's parameters under other names. If they are not (`functional_call`, an optimizer step
    in the same graph), nothing that was kept is theirs.
    """
    scales = _known[int(slot)]
    module, given = scales.module, (weight, lora_A, lora_B, magnitude)
    own = module.base_weight, module.lora_A, module.lora_B, module.magnitude
    same = all(a is None or b is None or a.data_ptr() == b.data_ptr() for a, b in zip(own, given, strict=True))
    scaled = scales.of(*own) if same and own[3] is not None else scales.computed(*given)  # pyright: ignore
    return scaled.factor.clone(), scaled.inverse_norm.clone()


@_scale.register_fake
def _(
    slot: Tensor, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(magnitude), torch.empty_like(magnitude)


def current(module: Adapted) -> linear.Scale | None:
    """The module's scale now; None for LoRA. Forward calls this, compiled or not."""
    magnitude = module.magnitude
    if magnitude is None:
        return None
    parts = module.base_weight, module.lora_A, module.lora_B
    if torch.compiler.is_compiling():
        parts = [None if part is None else part.detach() for part in parts]
        return linear.Scale(*_scale(module.scales.slot, *parts, magnitude.detach()), keep=True)
    return module.scales.of(*parts, magnitude)
