"""VL-BART: an encoder reads the question, pictures and clips; a decoder learns and writes the answer.

The prompts for each task and the first token of the decoder are those of VL-Adapter (Sung et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmdora.errors import MmdoraError
from mmdora.families.ending import Ending
from mmdora.families.family import Family, Features, Shown, naming
from mmdora.families.prompt import Prompt
from mmdora.families.template import IGNORE, encode, with_question
from mmdora.records.features import open_features
from mmdora.records.images import open_image
from mmdora.records.row import Row
from mmdora.records.turns import Messages, answer_text, prompt_messages


class VLBart(Family):
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

    def check_question(self, row: Row) -> None:
        """Accept every row: pictures, clips as features, or text alone."""

    def check_task(self, name: str) -> None:
        self.processor.prompt("", name)

    def asked(self, messages: Messages, task: str | None, instruct: Callable[[str], str]) -> Messages:
        if task is None:
            return messages
        return with_question(messages, lambda question: self.processor.prompt(question, task))

    def batch(self, rows: Sequence[Row], features: Features | None = None) -> dict[str, Tensor]:
        """Turn rows into the processor's tensors of the questions, `labels` [B, M], and `loss_weights` [B].

        The weights are there only if a row has a `weight`.

        Raises:
            MmdoraError: naming the row, if a picture or features cannot be read, or if the row has several turns.
        """
        prompts = []
        for row in rows:
            with naming(row):
                self.check_row(row)
                prompts.append(self._prompt(row, features))
        batch = dict(self.encode_prompts(prompts))
        batch["labels"] = self._targets(rows)
        if any("weight" in row for row in rows):
            batch["loss_weights"] = torch.tensor([row.get("weight", 1.0) for row in rows])
        return batch

    def check_learnable(self, rows: Sequence[Row]) -> None:
        for row in rows:
            with naming(row):
                self.check_row(row)
                self.check_pictures(row["messages"], len(row["images"]))
        self._targets(rows)

    def _prompt(self, row: Row, features: Features | None) -> Prompt:
        messages = self.asked(prompt_messages(row), row.get("task"), lambda question: question)
        if row["features"] is not None:
            return Prompt(messages, [open_image(image) for image in row["images"]], open_features(row["features"]))
        if features is not None and row["images"]:
            return Prompt(messages, features=torch.stack([features(image) for image in row["images"]]))
        return Prompt(messages, [open_image(image) for image in row["images"]])

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

    def feature_tower(self, model: Any) -> nn.Module | None:
        return model.model.vision_tower

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Any:
        """Encode the questions, padded on the right because BART counts positions from the first token."""
        texts = [self.render(prompt.messages, generation_prompt=True) for prompt in prompts]
        images, clips = [prompt.images for prompt in prompts], [prompt.features for prompt in prompts]
        if any(clip is not None for clip in clips):
            return self.processor(text=texts, images=images if any(images) else None, features=clips)
        return encode(self.processor, texts, images, left=False)

    def encode_conversation(self, prompt: Prompt) -> Any:
        text = self.render(prompt.messages, generation_prompt=True)
        if prompt.features is not None:
            return self.processor(text=[text], features=[prompt.features])
        return encode(self.processor, [text], [prompt.images], left=False)

    def generation(self, model: Any, max_new_tokens: int, beams: int = 1) -> dict[str, Any]:
        """Arguments for `generate`; there are at most as many new tokens as BART's decoder has positions for."""
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return super().generation(model, min(max_new_tokens, positions - 1) if positions else max_new_tokens, beams)

    def choices(self, answers: Sequence[str]) -> Sequence[str]:
        return answers

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
