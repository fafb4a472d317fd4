"""The objective of a training step: the model's own loss, divided by the number of labels in the whole step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from mmdora.families import IGNORE
from mmdora.train.loss import ChunkedLoss
from mmdora.train.processes import Processes


class Objective:
    """Computes the loss of a batch as a share of the loss of its step.

    A model that takes `num_items_in_batch` sums the losses of its labels and divides by that number. It is given the
    number of labels in all micro-batches of the step in all processes, so that each label has the same weight whatever
    batch it is in. DDP averages gradients over the processes, so the loss is multiplied by their number. Any other
    model gives the mean over its own batch, which is divided by the number of batches.

    Args:
        one_stream: whether prompt and answer are one sequence, see `Family.one_stream`. If they are, most positions of
            a batch have no label, and the loss compares position t with label t + 1. If not, all labels are answers.
        chunked: whether to compute the loss in chunks (`ChunkedLoss`) if the model allows it.
        probe: function that gives a batch on which to find out whether the model allows it. If it gives None, the first
            batch in training is used. A fixed batch is better: a batch in training can be fully masked, and all
            processes and resumes must decide alike.
        say: receives the reason why the model does not allow it.
    """

    def __init__(
        self,
        model: Any,
        processes: Processes,
        *,
        one_stream: bool,
        chunked: bool,
        probe: Callable[[], Mapping[str, Any] | None],
        say: Callable[[str], None],
    ):
        self.model, self.processes, self.probe, self.say = model, processes, probe, say
        self.takes_items = takes_items(model)
        self.shifts = one_stream and LOSS_MAPPING.get(model.loss_type) is ForCausalLMLoss
        self._try_chunks = chunked and one_stream  # If all positions have a label, chunks save nothing.
        self._chunked: ChunkedLoss | None = None

    def items(self, batches: Sequence[Mapping[str, Any]]) -> Tensor | None:
        """The number of labels in a step's batches in all processes; None if the model does not take the number."""
        if not self.takes_items:
            return None
        labels = [
            batch["shift_labels"] if "shift_labels" in batch else batch["labels"][..., 1 if self.shifts else 0 :]
            for batch in batches
        ]
        count = torch.stack([each.ne(IGNORE).sum() for each in labels]).sum().to(self.processes.device)
        return count if self.processes.count == 1 else self.processes.accelerator.gather(count).sum()  # pyright: ignore

    def train(self, wrapped: nn.Module, batch: Mapping[str, Any], items: Tensor | None, batches: int) -> Tensor:
        """Run forward on a batch in training; gives a scalar to call backward on.

        Args:
            wrapped: the model as accelerate prepared it.
            items: the result of `items` for the step.
            batches: number of batches of the step in this process, for models that do not take `items`.
        """
        with self._chunks(batch):
            loss = self.evaluate(wrapped, batch, items)
        if not loss.requires_grad:  # If only the projector trains, rows of text have nothing to teach it.
            loss = loss + 0 * sum(p.sum() for p in self.model.parameters() if p.requires_grad)
        return loss if self.takes_items else loss / batches

    def evaluate(self, model: nn.Module, batch: Mapping[str, Any], items: Tensor | None) -> Tensor:
        """Run forward on a batch; gives its loss, computed over all positions at once."""
        if items is None:
            return _loss_of(model(**batch))
        return _loss_of(model(**batch, num_items_in_batch=items)) * self.processes.count

    def again(self, batch: Mapping[str, Any]) -> Tensor:
        """The loss of a batch by itself, to search for values that are not finite."""
        with self._chunks(batch):
            return _loss_of(self.model(**batch))

    def _chunks(self, batch: Mapping[str, Any]) -> AbstractContextManager[None]:
        if self._try_chunks:
            self._try_chunks = False
            chunked = ChunkedLoss(self.model)
            if problem := chunked.problem(self.probe() or batch):
                self.say(f"loss: over all positions at once, since {problem}")
            else:
                self._chunked = chunked
        return nullcontext() if self._chunked is None else self._chunked.applied()


def takes_items(model: Any) -> bool:
    """Whether the model's forward takes `num_items_in_batch`.

    A model may say so itself (`accepts_loss_kwargs`); else it does if it takes any keyword argument.
    """
    if hasattr(model, "accepts_loss_kwargs"):
        return model.accepts_loss_kwargs
    return any(kind.kind is kind.VAR_KEYWORD for kind in inspect.signature(model.forward).parameters.values())


def _loss_of(output: Any) -> Tensor:
    return output["loss"] if isinstance(output, dict) else output[0]
