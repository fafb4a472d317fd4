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

import torch
from torch import Tensor

from mmdora.layers.kept import Scaled, known
from mmdora.ops import linear, transforms


@torch.library.custom_op("mmdora::scale", mutates_args=())
def _scale(
    slot: Tensor, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor
) -> tuple[Tensor, Tensor]:
    """Factor and inverse norm of the module with this slot, as copies, which the compiler may overwrite.

    The arguments are usually the module's own parameters. With `functional_call`, or with an optimizer step in the
    same graph, they are not, and then the kept scale is not theirs.
    """
    scales = known[int(slot)]
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
    parts = module.base_weight, module.gated_A, module.lora_B
    if torch.compiler.is_compiling():
        parts = [None if part is None else part.detach() for part in parts]
        return linear.Scale(*_scale(module.scales.slot, *parts, magnitude.detach()), keep=True)
    if transforms.wrapped((*parts, magnitude)):
        return module.scales.under_transform(*parts, magnitude)
    if module.gate is not None:  # diag(g) A is a new tensor in each forward, so nothing that is kept fits it.
        return module.scales.computed(*parts, magnitude)
    scale = module.scales.of(*parts, magnitude)
    return scale._replace(keep=True) if module.output_written else scale


def factors(module: Scaled, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """The module's A and B for a forward whose low-rank products are in `dtype`.

    An answer is made token by token, and each token would cast them anew. So in eval, where no gradient is asked for,
    they are in that dtype already, and kept. Otherwise they are the parameters.
    """
    lora_A, lora_B = module.gated_A, module.lora_B
    if module.gate is not None:
        return lora_A, lora_B
    if lora_A is None or lora_B is None or lora_A.dtype == dtype or module.training or torch.is_grad_enabled():
        return lora_A, lora_B
    if torch.compiler.is_compiling() or transforms.active():
        return lora_A, lora_B
    return module.scales.factors(lora_A, lora_B, dtype)
