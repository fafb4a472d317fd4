"""Rows to training batches, for every processor of the image-text-to-text family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmdora.batches.prompt import IGNORE, encode, labels_of, render_with_answers
from mmdora.errors import MmdoraError
from mmdora.records.images import open_image


class Collator:
    """Renders, decodes, encodes and pads rows; labels cover the assistant's turns only."""

    def __init__(self, processor: Any, root: Path):
        self.processor, self.root = processor, root

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows to `input_ids`, `attention_mask`, `labels` [B, L], `pixel_values` and what else the processor gives.

        Raises:
            MmdoraError: naming the row, for an image that cannot be read or a row without a label.
        """
        texts, spans, images = [], [], []
        for row in rows:
            try:
                text, answers = render_with_answers(self.processor, row["messages"])
                texts.append(text)
                spans.append(answers)
                images.append([open_image(name, self.root) for name in row["images"]])
            except MmdoraError as error:
                raise MmdoraError(f"record {row['id']}: {error}") from None
        encoded = encode(self.processor, texts, images, left=False, offsets=True)
        labels = []
        for index, row in enumerate(rows):
            try:
                labels.append(labels_of(encoded, index, spans[index]))
            except MmdoraError as error:
                raise MmdoraError(f"record {row['id']}: {error}") from None
            if all(label == IGNORE for label in labels[-1]):
                raise MmdoraError(f"record {row['id']}: no token to learn (every label is masked)")
            if row.get("masked"):
                labels[-1] = [IGNORE] * len(labels[-1])
        batch = {key: value for key, value in encoded.items() if isinstance(value, torch.Tensor)}
        return batch | {"labels": torch.tensor(labels)}
