"""DoRA as arXiv 2402.09353 writes it: dense, in any dtype, on autograd. Everything else is tested against this file.

The paper's norm is "column-wise" for its W [d, k]; for `nn.Linear.weight` [O, I] that is one norm per
output row. Section 4.3: the norm is a constant in backward.
"""

from __future__ import annotations

import torch
from torch import Tensor


def direction(weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, scaling: float) -> Tensor:
    """V = W0 + s B A.

    Args:
        weight: [O, I].
        lora_A: [R, I], or None for a magnitude alone.
        lora_B: [O, R].
        scaling: s.
    """
    return weight if lora_A is None or lora_B is None else weight + scaling * (lora_B @ lora_A)


def adapted_weight(
    weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor | None, scaling: float
) -> Tensor:
    """W' = diag(m / n) V [O, I] (equation 5); V itself without a magnitude. Rows with n = 0 keep V."""
    dense = direction(weight, lora_A, lora_B, scaling)
    return dense if magnitude is None else row_factor(dense, magnitude)[:, None] * dense


def row_factor(dense: Tensor, magnitude: Tensor) -> Tensor:
    """m / n [O] for V [O, I]; 1 where n = 0. The norm n is a constant in backward."""
    norm = torch.linalg.vector_norm(dense, dim=1).detach()
    return torch.where(norm > 0, magnitude / norm.where(norm > 0, 1), torch.ones_like(magnitude))


def adapted_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    magnitude: Tensor | None,
    scaling: float,
) -> Tensor:
    """y = x W'^T + bias, with x [..., I] and y [..., O]."""
    return torch.nn.functional.linear(x, adapted_weight(weight, lora_A, lora_B, magnitude, scaling), bias)
