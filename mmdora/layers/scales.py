"""The scale c = m / n of an adapted module: computed once per optimizer step, in eager mode and in compiled graphs.

n changes only when a parameter is written, so the scale is kept until that happens, and gradient accumulation and
recomputation pay nothing. A write is seen in one of these ways:

- Most writes raise the parameter's version, or put another tensor in its place.
- A step of a `torch.optim` optimizer is counted by a hook; the fused ones raise no version.
- What goes through the module (`load_state_dict`, `to`) forgets the scale.
- A write through `.data` raises no version. On a CPU it is seen at once if it changes one of the few values of each
  parameter that every forward compares (see `stamp`). On other devices reading a value would wait for the device.
- For the rest, everything is forgotten where `train()` or `eval()` switches the mode, and where the module is saved
  (`state_dict`, `save_adapter`) or merged. Between these, call `refresh` after a write through `.data`.

A version cannot be read inside a compiled graph. There the scale comes from an operator of our own. The compiler takes
it for a function of the parameters, and at run time it does the same look-up. So nothing has to be refreshed from
outside, no graph breaks, and one compiled block serves all layers of its shape.

FSDP and DeepSpeed's ZeRO-3 gather parameters into buffers whose version and address say nothing about writes, and a
CUDA graph replays what it captured. In these cases the scale is computed in each forward.

To decide whether backward can recover z, somebody has to look at c, and that waits for the device. So the first forward
after an optimizer step computes the scales of all modules that learn on its device, and looks at all of them at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from mmdora.errors import MmdoraError
from mmdora.layers.stamp import Stamp
from mmdora.ops import linear, norm, reference, transforms

_steps = 0
_slots = count()
_known: weakref.WeakValueDictionary[int, Scales] = weakref.WeakValueDictionary()


class Scaled(Protocol):
    """The attributes of a module that a scale is computed from; `Adapted` has them."""

    scaling: float
    training: bool

    @property
    def base_weight(self) -> Tensor: ...

    @property
    def lora_A(self) -> Tensor | None: ...  # noqa: N802

    @property
    def lora_B(self) -> Tensor | None: ...  # noqa: N802

    @property
    def magnitude(self) -> Tensor | None: ...

    @property
    def scales(self) -> Scales: ...

    def matrix(self, weight: Tensor) -> Tensor:
        """View the weight as the matrix W0 [O, I]."""
        ...

    def factors(self, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
        """The factors A [R, I] and B [O, R]."""
        ...


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)


class Scales:
    """The squared base norms and the `Scale` of one adapted module."""

    def __init__(self, module: Scaled):
        self._module = weakref.ref(module)
        # The module's number is a tensor: a plain int would become a constant of a compiled graph, and each layer
        # would need a graph of its own.
        self.slot = torch.tensor(next(_slots), device="cpu")
        _known[int(self.slot)] = self
        self.forget()

    def forget(self) -> None:
        self._base: tuple[Stamp, Tensor] | None = None
        self._scale: tuple[Stamp, linear.Scale] | None = None
        self._factors: tuple[Stamp, Tensor, Tensor] | None = None

    def of(self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor) -> linear.Scale:
        """The scale of the module's parameters; the kept one if nothing was written to them since."""
        own = _present(weight, lora_A, lora_B, magnitude)
        if not self._sees(own):
            return self.computed(weight, lora_A, lora_B, magnitude)
        if self._scale is None or not self._scale[0].fits(own, _steps):
            renewed = [self._renewed(weight, lora_A, lora_B, magnitude)]
            renewed += [scales._renewed(*parts) for scales, parts in self._stale_beside(weight)]
            keeps = linear.small([scaled.factor for _, _, scaled in renewed])
            for (scales, stamp, scaled), keep in zip(renewed, keeps, strict=True):
                scales._scale = stamp, scaled._replace(keep=keep)
            assert self._scale is not None
        return self._scale[1]

    def _renewed(
        self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor
    ) -> tuple[Scales, Stamp, linear.Scale]:
        own = _present(weight, lora_A, lora_B, magnitude)
        stamp = Stamp(own, _steps) if self._scale is None else self._scale[0].renewed(own, _steps)
        self._scale = None  # Should memory run out below, the renewed stamp must not vouch for the old scale.
        return self, stamp, self.computed(weight, lora_A, lora_B, magnitude)

    def _stale_beside(self, weight: Tensor) -> Iterator[tuple[Scales, Any]]:
        """Yield the other modules that learn on this device and whose scale no longer fits, with their parameters."""
        if not _waits(weight.device) or not self.module.training or transforms.active():
            return
        for scales in list(_known.values()):
            module = scales._module()
            if scales is self or module is None or not module.training:
                continue
            parts = module.base_weight, module.lora_A, module.lora_B, module.magnitude
            learns = parts[3] is not None and parts[3].requires_grad and parts[3].dtype.itemsize >= 4
            own = _present(*parts)
            if not learns or any(tensor.device != weight.device for tensor in own) or not scales._sees(own):
                continue
            if scales._scale is None or not scales._scale[0].fits(own, _steps):
                yield scales, parts

    def computed(self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor) -> linear.Scale:
        """The scale of any parameters of these shapes, computed anew. It keeps z, so that nobody has to look at c.

        Raises:
            MmdoraError: a magnitude in half precision.
        """
        if magnitude.dtype.itemsize < 4:
            raise MmdoraError(
                f"a magnitude came to forward in {magnitude.dtype}, which rounds its changes away; "
                "leave param_dtype out of FSDP's MixedPrecisionPolicy and use autocast instead"
            )
        # A later backward could not use what was computed in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            return linear.scale(magnitude, self.row_norm(weight, lora_A, lora_B), keep=True)

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

    def under_transform(
        self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor
    ) -> linear.Scale:
        """The scale of parameters on which a transform of `torch.func` works; B A is formed for it.

        `vmap` lets nobody look at values, which the sum without B A would have to where it cancels.
        """
        module, dtype = self.module, norm.wide(weight.dtype)
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            factors = (None, None) if lora_A is None or lora_B is None else module.factors(lora_A, lora_B)
            dense = reference.direction(module.matrix(weight.detach()).to(dtype), *factors, module.scaling)
            n = torch.linalg.vector_norm(dense, dim=1).detach()
            return linear.scale(magnitude.detach(), n, keep=True)

    @property
    def module(self) -> Scaled:
        module = self._module()
        assert module is not None
        return module

    def factors(self, lora_A: Tensor, lora_B: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B in another dtype; the kept copies if nothing was written to them since."""
        own = [lora_A, lora_B]
        if not self._sees(own):
            return lora_A, lora_B
        if self._factors is None or self._factors[1].dtype != dtype or not self._factors[0].fits(own, _steps):
            with torch.inference_mode(False), torch.no_grad():
                self._factors = Stamp(own, _steps), lora_A.to(dtype), lora_B.to(dtype)
        return self._factors[1:]

    def _sees(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a write to one of these tensors can be seen at all."""
        if "_is_fsdp_managed_module" in self.module.__dict__ or "ds_id" in tensors[0].__dict__:
            return False
        return not _captured(tensors[0]) and not any(tensor.is_inference() for tensor in tensors)


def _present(weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor | None) -> list[Tensor]:
    return [part for part in (weight, magnitude, lora_A, lora_B) if part is not None]


def _waits(device: torch.device) -> bool:
    """Whether reading a value waits for work that was given to the device before."""
    return device.type != "cpu"


def _captured(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


@torch.library.custom_op("mmdora::scale", mutates_args=())
def _scale(
    slot: Tensor, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor
) -> tuple[Tensor, Tensor]:
    """Factor and inverse norm of the module with this slot, as copies, which the compiler may overwrite.

    The arguments are usually the module's own parameters. With `functional_call`, or with an optimizer step in the
    same graph, they are not, and then the kept scale is not theirs.
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


def current(module: Scaled) -> linear.Scale | None:
    """The module's scale now; None for LoRA. Forward calls this, compiled or not."""
    magnitude = module.magnitude
    if magnitude is None:
        return None
    parts = module.base_weight, module.lora_A, module.lora_B
    if torch.compiler.is_compiling():
        parts = [None if part is None else part.detach() for part in parts]
        return linear.Scale(*_scale(module.scales.slot, *parts, magnitude.detach()), keep=True)
    if transforms.wrapped((*parts, magnitude)):
        return module.scales.under_transform(*parts, magnitude)
    return module.scales.of(*parts, magnitude)


def factors(module: Scaled, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """The module's A and B for a forward whose low-rank products are in `dtype`.

    An answer is made token by token, and each token would cast them anew. So in eval, where no gradient is asked for,
    they are in that dtype already, and kept. Otherwise they are the parameters.
    """
    lora_A, lora_B = module.lora_A, module.lora_B
    if lora_A is None or lora_B is None or lora_A.dtype == dtype or module.training or torch.is_grad_enabled():
        return lora_A, lora_B
    if torch.compiler.is_compiling() or transforms.active():
        return lora_A, lora_B
    return module.scales.factors(lora_A, lora_B, dtype)
