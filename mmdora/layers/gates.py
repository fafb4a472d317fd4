"""Gates g [R] on the components of B A: W' = diag(c) (W0 + s B diag(g) A), where c = m / ||W0 + s B diag(g) A||.

A gate scales one component, a column of B and a row of A, and nothing else: neither W0 nor m. All gates are 1 at first,
so a module with gates computes what it did without. A component whose gate is 0 can be taken out, and nothing changes.

A module without gates pays nothing for their being possible. One with gates gives diag(g) A to the same products as A,
and computes the norm in every forward, because what `kept` keeps is known by the parameters that it was computed from.
"""

from __future__ import annotations

import torch
from torch import nn

from mmdora.layers.adapted import Adapted
from mmdora.layers.conv import AdaptedConv
from mmdora.layers.experts import AdaptedExpertWeight


def open_gate(module: Adapted) -> None:
    """Give a module with a low-rank branch gates, all of them 1."""
    if module.lora_A is not None and module.gate is None:
        module.gate = nn.Parameter(module.lora_A.new_ones(module.rank))


@torch.no_grad()
def fold_gate(module: Adapted) -> None:
    """Multiply A by the gates, take them off, and take out the components that were closed (g = 0).

    What the module computes stays the same, bit for bit as far as the order of a sum over the components allows. Where
    all are closed, a DoRA becomes a magnitude alone, of rank 0; a LoRA keeps one component, which is zero, because PEFT
    has no rank 0. A convolution with groups keeps closed ones as zeros, because each group has as many as the others.
    """
    lora_A, lora_B, gate = module.gated_A, module.lora_B, module.gate
    if gate is None or lora_A is None or lora_B is None:
        return
    module.gate = None
    module.refresh()
    kept = gate.nonzero().flatten()
    if not len(kept) and module.magnitude is not None:
        module.method, module.rank, module.dropout, module.lora_A, module.lora_B = "magnitude", 0, 0.0, None, None
        return
    if not isinstance(module, AdaptedConv) or module.groups == 1:
        kept = kept if len(kept) else kept.new_zeros(1)
        axis_A, axis_B = (1, 2) if isinstance(module, AdaptedExpertWeight) else (0, 1)
        lora_A, lora_B, module.rank = lora_A.index_select(axis_A, kept), lora_B.index_select(axis_B, kept), len(kept)
    module.lora_A, module.lora_B = nn.Parameter(lora_A), nn.Parameter(lora_B.detach())
