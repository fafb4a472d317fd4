"""Singular values of the mean gradient of each weight, by a randomised range finder; no gradient [O, I] is ever formed.

A LoRA that changes nothing measures it. With B = 0 and s = 1 the loss has dB = G A^T, and with A = 0 it has dA = B^T G,
where G [O, I] is the gradient of the matrix W0. So with random numbers in A, a pass over the rows gives a sketch G A^T
of the range of G, and with an orthonormal basis Q of it in B, the next gives Q^T G, whose singular values are those of
G as far as Q holds its range (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithms 4.4 and 5.1). One power
iteration between the two makes Q hold what matters also where the values fall slowly. It works for every kind of layer
that can be adapted, on quantised weights too, and takes memory for A, B and a gradient of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmdora.adapt.entries import entry_of
from mmdora.adapt.inject import apply, unload
from mmdora.adapt.modality import ModelParts
from mmdora.adapt.plan import Plan
from mmdora.adapt.switch import adapted_modules
from mmdora.layers import Adapted, place_of

OVERSAMPLING = 8
"""Directions of the sketch beyond those that are asked for; 5 to 10 are usual (section 4.2 of that paper)."""
POWER_ITERATIONS = 1


def spectra(
    model: nn.Module, counts: Mapping[str, int], losses: Callable[[], Iterator[Tensor]], seed: int
) -> dict[str, list[float]]:
    """Measure the singular values of the gradient of each weight. The model is a plain base again afterwards.

    Args:
        model: the untouched base, in evaluation mode, where every pass over the same rows gives the same losses.
        counts: name of a module that can be adapted -> how many of its largest values are wanted.
        losses: gives the loss of one batch after the other, in the same order at each call; G is the gradient of
            their mean. Each is run backward before the next is asked for.
        seed: of the random directions.

    Returns:
        Name -> singular values, the largest first: the root of the sum of squares over experts, where there are some.
    """
    probes = []
    for name, count in counts.items():
        place, wide = place_of(model, name), count + OVERSAMPLING
        probe = entry_of(
            place, name=name, method="lora", rank=wide, dropout=0.0, modality="", alpha=float(wide), scaling=1.0
        )
        probes.append(probe)
    apply(model, Plan(ModelParts((), (), ()), tuple(probes), (), {}, {}))
    modules = {name: module for name, module in adapted_modules(model).items() if name in counts}
    try:
        generator = torch.Generator().manual_seed(seed)
        for module in modules.values():
            own_A, own_B = _matrices(module)
            own_A.copy_(torch.randn(own_A.shape, generator=generator))
            own_B.zero_()
        for remaining in reversed(range(POWER_ITERATIONS + 1)):
            for module, sketch in _gradients(modules, losses, "lora_B"):
                own_A, own_B = _matrices(module)
                own_B.copy_(_orthonormal(sketch))
                own_A.zero_()
            found = {}
            for module, projected in _gradients(modules, losses, "lora_A"):
                own_A, own_B = _matrices(module)
                own_A.copy_(_orthonormal(projected.mT).mT)
                own_B.zero_()
                if not remaining:
                    found[module] = _values(projected)
    finally:
        unload(model)
    return {name: found[module][: counts[name]] for name, module in modules.items()}


def _gradients(
    modules: Mapping[str, Adapted], losses: Callable[[], Iterator[Tensor]], of: str
) -> Sequence[tuple[Adapted, Tensor]]:
    """Pair each module with the gradient of the mean loss for A [.., R, I] or B [.., O, R], zeros where it has none."""
    for module in modules.values():
        for name in ("lora_A", "lora_B"):
            own: nn.Parameter = getattr(module, name)
            own.grad = None
            own.requires_grad_(name == of)
        module.refresh()
    count = 0
    for loss in losses():
        count += 1
        if loss.requires_grad:
            loss.backward()
    pairs = []
    for module in modules.values():
        assert module.lora_A is not None and module.lora_B is not None
        own = module.lora_A if of == "lora_A" else module.lora_B
        gradient = torch.zeros_like(own) if own.grad is None else own.grad / count
        own.grad = None
        factors = (gradient, module.lora_B) if of == "lora_A" else (module.lora_A, gradient)
        pairs.append((module, module.factors(*factors)[0 if of == "lora_A" else 1].detach()))
    return pairs


def _matrices(module: Adapted) -> tuple[Tensor, Tensor]:
    """A [.., R, I] and B [.., O, R] as matrices that are views of the parameters, to be written to."""
    assert module.lora_A is not None and module.lora_B is not None
    return module.factors(module.lora_A.detach(), module.lora_B.detach())


def _orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the range of [.., N, R], in as many columns; beyond N, columns of zeros."""
    basis = torch.linalg.qr(columns.double()).Q
    missing = columns.shape[-1] - basis.shape[-1]
    return nn.functional.pad(basis, (0, missing)).to(columns.dtype)


def _values(projected: Tensor) -> list[float]:
    values = torch.linalg.svdvals(projected.double())
    return values.reshape(-1, values.shape[-1]).square().sum(0).sqrt().tolist()
