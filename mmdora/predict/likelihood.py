"""How likely a model finds given answers: the log-probability of each option behind the text before it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmdora.families import IGNORE, family_of
from mmdora.families.template import inputs_of, labels_of
from mmdora.predict.answers import evaluating

Continuation = tuple[str, str, list[Image.Image]]
"""A text, one way to continue it, and the pictures that the text has places for."""


@torch.no_grad()
def log_probabilities(
    model: Any, processor: Any, continuations: Sequence[Continuation], *, batch_size: int = 64
) -> list[float]:
    """The sum of the log-probabilities of the tokens of each continuation, in fp32.

    Blanks at the end of a text belong to its continuation, because tokens begin with them (as in
    lm-evaluation-harness). An end of turn is not counted.

    Args:
        continuations: options of one question stand together, so that a batch is padded little.

    Raises:
        MmdoraError: if one token holds the end of the text and the start of its continuation.
    """
    sums: list[float] = []
    with evaluating(model):
        for start in range(0, len(continuations), batch_size):
            sums += _sums(model, processor, continuations[start : start + batch_size])
    return sums


def _sums(model: Any, processor: Any, batch: Sequence[Continuation]) -> list[float]:
    texts = [before + after for before, after, _ in batch]
    encoded = family_of(processor).read(texts, [images for _, _, images in batch], left=False, offsets=True)
    spans = [[(len(before.rstrip(" ")), len(before + after))] for before, after, _ in batch]
    labels = [labels_of(encoded, row, texts[row], spans[row]) for row in range(len(batch))]
    labels = torch.tensor(labels, device=model.device)
    inputs = {name: _moved(value, model) for name, value in inputs_of(processor, encoded).items()}
    # The logits at a position are those of the next token. Only positions with a label in some row are computed.
    wanted = (labels[:, 1:] != IGNORE).any(0).nonzero().squeeze(1)
    kept = "logits_to_keep" in inspect.signature(model.forward).parameters
    logits = model(**inputs, use_cache=False, **({"logits_to_keep": wanted} if kept else {})).logits
    logits, targets = (logits if kept else logits[:, wanted]).float(), labels[:, wanted + 1]
    chosen = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    return chosen.masked_fill(targets == IGNORE, 0.0).sum(1).tolist()


def _moved(value: Tensor, model: Any) -> Tensor:
    return value.to(model.device, model.dtype if value.is_floating_point() else None)
