"""Runs the model only once over what prompts about the same picture share: everything up to their last image.

A picture is most of a prompt (576 tokens in LLaVA-1.5), and benchmarks ask several questions about each. The keys and
values of the shared part do not depend on what follows, so one pass serves all questions about the picture. In the
batch, padding then stands between the shared part and the rest, and not only at the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from mmdora.families import Family
from mmdora.models.cache import CACHE


@torch.no_grad()
def read_once(model: Any, family: Family, inputs: Any, images: Sequence[Sequence[Image.Image]]) -> Any:
    """Return the inputs of `generate` with the shared parts in a cache, or the same inputs if sharing gains nothing.

    Args:
        inputs: the result of `Family.encode_prompts`: input_ids and attention_mask [B, L] padded on the left, and
            pixel_values [N, 3, H, W].
        images: the images of each prompt. Prompts about the same image must hold the same object.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if not all(images) or not family.shares_prefix(model, inputs):
        return inputs
    # argmax finds the first image token of the flipped row, so `behind` is the place after the last one.
    behind = ids.shape[1] - (ids == model.config.image_token_id).flip(1).int().argmax(1)
    cuts = zip(ids.tolist(), mask.sum(1).tolist(), behind.tolist(), strict=True)
    parts = [(row[len(row) - size : end], row[end:]) for row, size, end in cuts]
    first: dict[tuple[Any, ...], int] = {}  # pictures and ids of a shared part -> the first prompt that has it
    keys = [(*map(id, own), *head) for own, (head, _) in zip(images, parts, strict=True)]
    owners = [first.setdefault(key, row) for row, key in enumerate(keys)]
    if 2 * len(first) > len(parts):  # With fewer than two prompts per shared part, a separate pass saves nothing.
        return inputs
    number = {row: place for place, row in enumerate(first.values())}
    starts = [sum(map(len, images[:row])) for row in range(len(images))]
    pictures = [starts[row] + i for row in number for i in range(len(images[row]))]
    head, head_mask = _left_padded([parts[row][0] for row in number], ids)
    cache = model(
        input_ids=head,
        attention_mask=head_mask,
        position_ids=(head_mask.cumsum(1) - 1).clamp(min=0),
        pixel_values=inputs["pixel_values"][pictures],
        use_cache=True,
        logits_to_keep=1,
    )[CACHE]
    rows = torch.tensor([number[row] for row in owners], device=ids.device)
    cache.batch_select_indices(rows)
    tail, tail_mask = _left_padded([tail for _, tail in parts], ids)
    return {
        "input_ids": torch.cat([head[rows], tail], 1),
        "attention_mask": torch.cat([head_mask[rows], tail_mask], 1),
        CACHE: cache,
    }


def _left_padded(rows: Sequence[Sequence[int]], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids (0 in padding) and the attention mask of rows, both [rows, longest]."""
    width = max(map(len, rows))
    ids = [[0] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return like.new_tensor(ids), like.new_tensor(mask)
