"""Batches of a family's rows to learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmdora.errors import MmdoraError
from mmdora.families.counting import Counting
from mmdora.families.positions import RopeIndex
from mmdora.families.template import IGNORE, inputs_of, labels_of, needs_start_token
from mmdora.records.images import FileRef, open_image
from mmdora.records.row import Row, naming, videos_of
from mmdora.records.videos import Video, open_video

Features = Callable[[FileRef], Tensor]
"""A function that gives the features [T, F] that a tower computes for a picture."""
Shown = tuple[str, str]
"""A piece of text and its kind: "text", "image" (a run of image tokens) or "learned"."""


class Learning(Counting):
    """How a family makes batches; see `Family`."""

    def batch(self, rows: Sequence[Row], features: Features | None = None) -> dict[str, Tensor]:
        """Turn rows into `input_ids`, `attention_mask`, `labels` [B, L], `pixel_values` and the processor's other keys.

        Args:
            features: gives features in place of pictures, in families whose models take features.

        Raises:
            MmdoraError: naming the row, for a picture that cannot be read or a row without a label.
        """
        texts, spans = self._written(rows)
        images = []
        for row in rows:
            with naming(row):
                images.append([open_image(image) for image in row["images"]])
        videos = (_opened(row) for row in rows) if any(map(videos_of, rows)) else None
        encoded = self._read(texts, images, videos, left=False, offsets=True)
        labels = self._labels(rows, encoded, texts, spans)
        for index, row in enumerate(rows):
            if row.get("masked"):
                labels[index] = [IGNORE] * len(labels[index])
        return inputs_of(self.processor, encoded) | {"labels": torch.tensor(labels)}

    def check_learnable(self, rows: Sequence[Row]) -> None:
        """Raise an MmdoraError, naming the row, if `batch` would refuse a row for its text; no picture is opened."""
        texts, spans = self._written(rows)
        special = needs_start_token(self.processor, texts)
        encoded = self.tokenizer(texts, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        self._labels(rows, encoded, texts, spans)

    def _written(self, rows: Sequence[Row]) -> tuple[list[str], list[list[tuple[int, int]]]]:
        """Each row as text, and the character spans of its answers."""
        texts, spans = [], []
        for row in rows:
            with naming(row):
                self.check_row(row)
                text, answers = self.render_with_answers(row["messages"])
                self._check_written(text, len(row["images"]), len(videos_of(row)))
                texts.append(text)
                spans.append(answers)
        return texts, spans

    def _labels(
        self, rows: Sequence[Row], encoded: Any, texts: list[str], spans: list[list[tuple[int, int]]]
    ) -> list[list[int]]:
        """The labels of each row, of which some have to be learned."""
        labels = []
        for index, row in enumerate(rows):
            with naming(row):
                labels.append(labels_of(encoded, index, texts[index], spans[index]))
                if all(label == IGNORE for label in labels[-1]):
                    raise MmdoraError("no token to learn (every label is masked)")
        return labels

    def example_batch(self, image: Image.Image, rows: int, tokens: int | None, answer: int) -> dict[str, Tensor]:
        """A batch of `rows` equal rows with one picture each, for estimates of memory; its text has no meaning.

        Args:
            tokens: tokens of each row; None takes the prompt's tokens and `answer` more.
            answer: tokens of the answer, if `tokens` is None.
        """
        encoded, length = self.example_question(image)
        more = max((tokens or length + answer) - length, 1)
        batch = {}
        for name, value in encoded.items():
            if value.shape[:2] == (1, length):
                value = torch.cat([value, value[:, -1:].expand(-1, more, *value.shape[2:])], 1)
            batch[name] = value.repeat(rows, *[1] * (value.ndim - 1))
        labels = batch["input_ids"].clone()
        labels[:, :length] = IGNORE
        return batch | {"labels": labels}

    def example_question(self, image: Image.Image) -> tuple[dict[str, Tensor], int]:
        """One question about a picture as tensors, and its number of tokens."""
        question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
        text = self.render(question, generation_prompt=True)
        encoded = self.read([text], [[image]], left=False)
        return inputs_of(self.processor, encoded), encoded["input_ids"].shape[1]

    def packing_problem(self) -> str | None:
        """The reason why rows of this family cannot be packed together; None if they can."""
        return None

    def positions(self, model: nn.Module) -> RopeIndex | None:
        """The model's own rule of positions; None if it has none and positions are counted from 0."""
        owner = next((m for m in (model, getattr(model, "model", None)) if hasattr(m, "get_rope_index")), None)
        return RopeIndex(owner) if owner is not None else None

    def counted(self, batch: Mapping[str, Tensor]) -> int:
        """The number of tokens in a batch, without padding."""
        return int(batch["attention_mask"].sum())

    def shown(self, batch: Mapping[str, Tensor], row: int) -> Iterator[Shown]:
        """Yield a row of a batch as pieces of text for people; pictures and videos as their number of tokens."""
        columns = zip(batch["input_ids"][row], batch["labels"][row], batch["attention_mask"][row], strict=True)
        pictures = {self.image_id, None if self.videos is None else self.videos.id}
        tokens = [(int(token), int(label) != IGNORE, int(token) in pictures) for token, label, seen in columns if seen]
        for (learned, is_image), run in groupby(tokens, key=lambda token: token[1:]):
            ids = [token[0] for token in run]
            if is_image:
                yield f"{self.tokenizer.decode(ids[:1])} × {len(ids)}", "image"
            else:
                yield self.tokenizer.decode(ids), "learned" if learned else "text"

    def feature_tower(self, model: Any) -> nn.Module | None:
        """The vision tower whose features the model's forward accepts instead of pixels; None if it accepts none."""
        return None


def _opened(row: Row) -> list[Video]:
    with naming(row):
        return [open_video(video) for video in videos_of(row)]
