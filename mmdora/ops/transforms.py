"""What `torch.func`'s transforms and a second backward need of our autograd functions.

Those functions write their gradients by hand and work in place, which a transform (`grad`, `vmap`, `jvp`, `hessian`)
cannot see through. Under one, and in a backward that is itself differentiated (`create_graph=True`), the same equations
run in torch's own operations instead. They keep more tensors and take longer. Ordinary training never gets there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor


def active() -> bool:
    """Whether a transform of `torch.func` runs."""
    # torch.autograd.Function.apply asks the same function; torch has no public name for it.
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def wrapped(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a transform works on one of these tensors, which then has neither an address nor, in `vmap`, a value."""
    return active() and any(t is not None and is_functorch_wrapped_tensor(t) for t in tensors)


def differentiated() -> bool:
    """Whether the backward that asks is itself recorded, so that it can be differentiated."""
    return not torch.compiler.is_compiling() and torch.is_grad_enabled()


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], g: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of `function(*inputs)`, as differentiable functions of the inputs and of g.

    Args:
        function: made of torch's own operations.
        inputs: what it takes; None for what is not there.
        g: gradient of its result.
        wanted: for each input, whether its gradient is wanted; None stands in the result where it is not.
    """
    # An input may depend on another one. Views keep the gradient of each from running on into the other.
    views = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    of = [view for view, want in zip(views, wanted, strict=True) if want and view is not None]
    found = iter(torch.autograd.grad(function(*views), of, g, create_graph=True))
    return [next(found) if want and view is not None else None for view, want in zip(views, wanted, strict=True)]
