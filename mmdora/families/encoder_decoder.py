"""Encoder-decoders: an encoder reads the question and what it is about, a decoder learns and writes the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from PIL import Image
from torch import Tensor

from mmdora.errors import MmdoraError
from mmdora.families.ending import Ending
from mmdora.families.family import Family
from mmdora.families.learning import Shown
from mmdora.families.template import IGNORE
from mmdora.records.row import Row, naming
from mmdora.records.turns import answer_text


class EncoderDecoder(Family):
    """One question and one answer per row. The target is the answer as the tokenizer encodes a text: `<s> answer </s>`.

    The start token is part of the target, so that NLVR2's answers "true" and "false" differ already in the first step.
    """

    one_stream = False

    @cached_property
    def ending(self) -> Ending:
        """The tokenizer appends its end token to each target; the template writes questions only."""
        return Ending(self.tokenizer, self.tokenizer.eos_token)

    def notes(self, generation_config: Any) -> list[str]:
        return self.ending.notes(generation_config)

    def check_row(self, row: Row) -> None:
        if sum(message["role"] == "assistant" for message in row["messages"]) > 1:
            raise MmdoraError("has several answers, and this model learns one a row; set data.max_turns: 1")
        self.check_videos(row["messages"])

    def check_learnable(self, rows: Sequence[Row]) -> None:
        for row in rows:
            with naming(row):
                self.check_row(row)
                self.check_pictures(row["messages"], len(row["images"]))
        self._targets(rows)

    def _targets(self, rows: Sequence[Row]) -> Tensor:
        """[B, M] int64: ids of the answers, and `IGNORE` in padding and in masked rows."""
        targets = self.tokenizer(text_target=[answer_text(row) for row in rows], padding=True, return_tensors="pt")
        most, lengths = self.tokenizer.model_max_length, targets["attention_mask"].sum(1)
        if (longest := int(lengths.max())) > most:
            name = rows[int(lengths.argmax())]["id"]
            raise MmdoraError(f"record {name}: its answer has {longest} tokens; this model writes at most {most}")
        labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, IGNORE)
        for index, row in enumerate(rows):
            if row.get("masked"):
                labels[index] = IGNORE
        return labels

    def example_batch(self, image: Image.Image, rows: int, tokens: int | None, answer: int) -> dict[str, Tensor]:
        encoded, length = self.example_question(image)
        batch = {name: value.repeat(rows, *[1] * (value.ndim - 1)) for name, value in encoded.items()}
        more = max((tokens or length + answer) - length, 1)
        return batch | {"labels": batch["input_ids"][:, -1:].repeat(1, more)}

    def packing_problem(self) -> str | None:
        return "its encoder reads each question by itself"

    def counted(self, batch: Mapping[str, Tensor]) -> int:
        return super().counted(batch) + int((batch["labels"] != IGNORE).sum())

    def shown(self, batch: Mapping[str, Tensor], row: int) -> Iterator[Shown]:
        labels = batch["labels"][row]
        yield self.tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row] == 1]), "text"
        yield " ", "text"
        yield self.tokenizer.decode(labels[labels != IGNORE]), "learned"

    def generation(self, model: Any, max_new_tokens: int, beams: int = 1) -> dict[str, Any]:
        """Arguments for `generate`; there are at most as many new tokens as BART's decoder has positions for."""
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return super().generation(model, min(max_new_tokens, positions - 1) if positions else max_new_tokens, beams)

    def only(self, answers: Sequence[str]) -> dict[str, Any]:
        """Arguments for `generate` that restrict it to one of the answers, encoded as training targets are.

        Each step may only choose a token that continues one of the answers, so the first step at which the answers
        differ decides between them.
        """
        targets = self.tokenizer(text_target=list(answers))["input_ids"]
        allowed: dict[tuple[int, ...], set[int]] = {}
        for ids in targets:
            for place, token in enumerate(ids):
                allowed.setdefault(tuple(ids[:place]), set()).add(token)
        finished = {self.tokenizer.pad_token_id}
        return {
            "prefix_allowed_tokens_fn": lambda _, ids: sorted(allowed.get(tuple(ids[1:].tolist()), finished)),
            "max_new_tokens": max(map(len, targets)),
            "num_beams": 1,
        }

    def new_ids(self, ids: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        return ids[:, 1:]
