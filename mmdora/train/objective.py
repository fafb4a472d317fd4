"""What a training step minimises: the model's own loss, divided by the labels of the whole step."""

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
    """The loss of a batch, as a share of the loss of its step.

    A model that takes `num_items_in_batch` sums the losses of its labels and divides by that number. It gets the
    labels of all micro-batches of the step in all processes, so that each label weighs the same whatever batch it is
    in; DDP averages gradients over the processes, hence the factor of their number. Another model gives the mean over
    its own batch, which is divided by the number of batches.

    Args:
        one_stream: whether prompt and answer are one sequence, as `Family.one_stream` tells. Then most positions of a
            batch have no label, and the loss compares position t with label t + 1. Else all labels are answers.
        chunked: whether to compute the loss in chunks (`ChunkedLoss`) where the model allows it.
        probe: gives a batch on which to find out whether it does; None: the first one that is trained on has to do.
            A batch may have nothing to learn, and all processes and resumes must decide alike.
        say: receives the reason why it does not.
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
        self._try_chunks = chunked and one_stream  # chunks save nothing where all positions have a label
        self._chunked: ChunkedLoss | None = None

    def items(self, batches: Sequence[Mapping[str, Any]]) -> Tensor | None:
        """How many labels the batches of a step have in all processes; None for a model that does not take it."""
        if not self.takes_items:
            return None
        labels = [
            batch["shift_labels"] if "shift_labels" in batch else batch["labels"][..., 1 if self.shifts else 0 :]
            for batch in batches
        ]
        count = torch.stack([each.ne(IGNORE).sum() for each in labels]).sum().to(self.processes.device)
        return count if self.processes.count == 1 else self.processes.accelerator.gather(count).sum()  # pyright: ignore

    def train(self, wrapped: nn.Module, batch: Mapping[str, Any], items: Tensor | None, batches: int) -> Tensor:
        """Forward of a batch in training; a scalar to call backward on.

        Args:
            wrapped: the model as accelerate prepared it.
            items: what `items` gave for the step.
            batches: how many batches the step has in this process, for a model that takes no `items`.
        """
        with self._chunks(batch):
            loss = self.evaluate(wrapped, batch, items)
        if not loss.requires_grad:  # text rows, where only the projector trains: there is nothing to learn
            loss = loss + 0 * sum(p.sum() for p in self.model.parameters() if p.requires_grad)
        return loss if self.takes_items else loss / batches

    def evaluate(self, model: nn.Module, batch: Mapping[str, Any], items: Tensor | None) -> Tensor:
        """Forward of a batch; its loss, over all positions at once."""
        if items is None:
            return _loss_of(model(**batch))
        return _loss_of(model(**batch, num_items_in_batch=items)) * self.processes.count

    def again(self, batch: Mapping[str, Any]) -> Tensor:
        """The loss of a batch by itself, for a search for what is not finite in it."""
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
    """Whether the model's forward takes `num_items_in_batch`: as it says itself, else where it takes any keyword."""
    if hasattr(model, "accepts_loss_kwargs"):
        return model.accepts_loss_kwargs
    return any(kind.kind is kind.VAR_KEYWORD for kind in inspect.signature(model.forward).parameters.values())


def _loss_of(output: Any) -> Tensor:
    return output["loss"] if isinstance(output, dict) else output[0]
