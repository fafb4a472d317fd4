"""Cross-entropy of the labelled positions only; the output head is applied to them in chunks.

Most positions of a row with a picture belong to the image or the prompt and have no label. A plain forward computes and
keeps their logits [B, T, V] for nothing, tens of GB at V = 152k. Here the model's own forward runs with a head that
passes the hidden states through, and the model's loss function applies the real head only where there are labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

IGNORE = -100
LOGITS = 2**25
"""The most elements of logits that exist at a time: 128 MiB in fp32, little beside the other tensors of a step."""


def chunked_cross_entropy(
    head: Callable[[Tensor], Tensor],
    trained: Sequence[Tensor],
    hidden: Tensor,
    targets: Tensor,
    vocabulary: int,
    items: Tensor | int | None = None,
    *,
    logits: int = LOGITS,
) -> Tensor:
    """Mean (or sum / items) of -log softmax(head(h))[target] over the positions with a target.

    Args:
        head: function [N, H] -> logits [N, V].
        trained: parameters that `head` uses and that need a gradient.
        hidden: [..., H] hidden states.
        targets: [...] int64, already shifted; -100 at positions without a target.
        vocabulary: number of logits of a position, V.
        items: divisor of the sum; by default the number of targets.
        logits: most elements of logits that exist at a time.

    Returns:
        A scalar in fp32.
    """
    flat = targets.reshape(-1).to(hidden.device)
    chosen = (flat != IGNORE).nonzero().squeeze(1)
    states, wanted = hidden.reshape(-1, hidden.shape[-1])[chosen], flat[chosen]
    size = max(logits // vocabulary, 1)

    def summed(states: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(head(states).float(), wanted, reduction="sum")

    if len(states) <= size:
        total = summed(states, wanted)
    elif torch.is_grad_enabled():
        total = _InPieces.apply(summed, size, tuple(trained), wanted, states, *trained)
    else:
        pieces = zip(states.split(size), wanted.split(size), strict=True)
        total = torch.stack([summed(*piece) for piece in pieces]).sum()
    return total / (len(chosen) if items is None else items)


class _InPieces(torch.autograd.Function):
    """The sum of the losses of several pieces; its gradients are computed already in forward.

    The result is a scalar, so backward only multiplies these gradients by another scalar. The logits of a piece are
    thus neither kept nor computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        summed: Callable[[Tensor, Tensor], Tensor],
        size: int,
        trained: tuple[Tensor, ...],
        wanted: Tensor,
        states: Tensor,
        *_: Tensor,
    ) -> Tensor:
        ctx.needs = needs = ctx.needs_input_grad[4:]
        totals, of_states = [], []
        of_trained: list[Tensor] = []
        for state, target in zip(states.split(size), wanted.split(size), strict=True):
            state = state.detach().requires_grad_(needs[0])
            with torch.enable_grad():
                total = summed(state, target)
            gradients = torch.autograd.grad(total, [t for t, on in zip((state, *trained), needs, strict=True) if on])
            if needs[0]:
                of_states.append(gradients[0])
                gradients = gradients[1:]
            of_trained = (
                [a.add_(b) for a, b in zip(of_trained, gradients, strict=True)] if of_trained else list(gradients)
            )
            totals.append(total.detach())
        ctx.save_for_backward(*([torch.cat(of_states)] if needs[0] else []), *of_trained)
        return torch.stack(totals).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        kept = iter(ctx.saved_tensors)
        return None, None, None, None, *(next(kept) * g if on else None for on in ctx.needs)


class ChunkedLoss:
    """Makes a model's forward compute its loss in chunks, if that gives the same loss as the model's own way."""

    def __init__(self, model: Any):
        self.model, self.head = model, model.get_output_embeddings()
        self.used, self.usable = False, True

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block, `model(**inputs, labels=…).loss` is computed in chunks, and `.logits` are hidden states."""
        head, model, plain = self.head, self.model, self.model.loss_function
        head.forward = lambda states: states  # An attribute of the instance hides the method of its class.
        model.loss_function = self._loss
        try:
            yield
        finally:
            del head.forward
            model.loss_function = plain

    def _loss(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        self.used = True
        targets = F.pad(labels, (0, 1), value=IGNORE)[..., 1:] if shift_labels is None else shift_labels
        head = self.head
        return chunked_cross_entropy(
            lambda states: type(head).forward(head, states),
            [parameter for parameter in head.parameters() if parameter.requires_grad],
            logits,
            targets,
            head.weight.shape[0],
            num_items_in_batch,
        )

    def problem(self, inputs: Mapping[str, Any]) -> str | None:
        """The reason why this model's loss cannot be computed in chunks; None if it can.

        To find out, the loss of one batch is computed in both ways.
        """
        if not isinstance(self.head, nn.Module):
            return "the model has no output head"
        training, self.used = self.model.training, False
        self.model.eval()
        try:
            with torch.no_grad():
                plain = self.model(**inputs).loss
                try:
                    with self.applied():
                        ours = self.model(**inputs).loss
                except (RuntimeError, ValueError, IndexError) as error:
                    return f"the model works on its logits before the loss ({str(error).splitlines()[0]})"
        finally:
            self.model.train(training)
        if not self.used:
            return "the model does not call its loss_function"
        if not torch.allclose(ours.float(), plain.float(), rtol=1e-2 if plain.dtype != torch.float32 else 1e-4):
            return f"the model changes its logits after the head (loss {float(plain):.6g}, in chunks {float(ours):.6g})"
        return None
