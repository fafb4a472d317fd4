"""Families whose processor itself puts one picture before the text, so that no text has a place for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from mmdora.errors import MmdoraError
from mmdora.families.chat import said
from mmdora.families.ending import Ending
from mmdora.families.expansion import Size
from mmdora.families.family import Family
from mmdora.families.learning import Features
from mmdora.families.prompt import Prompt
from mmdora.families.template import IGNORE, inputs_of
from mmdora.records.images import open_image
from mmdora.records.row import Row, naming
from mmdora.records.turns import Messages, answer_text, prompt_messages

LAST_QUESTION = "{%- for part in messages[-1]['content'] if part['type'] == 'text' %}{{- part['text'] }}{%- endfor %}"
"""A template that writes the last question of a conversation as it is."""
PICTURE = "this model answers questions about one picture; give exactly one"
ALONG_TEXT = {"input_ids": None, "labels": IGNORE}
"""Inputs [rows, tokens] -> what pads them; None stands for the padding token."""
ALONG_TEXT |= dict.fromkeys(("attention_mask", "mm_token_type_ids", "image_embeds_position_mask"), 0)


class OnePicture(Family):
    """A family that reads exactly one picture, in no place that its template could name.

    A processor without a chat template gets the one in `default`.
    """

    default: str

    def __init__(self, processor: Any):
        super().__init__(processor)
        self.placeholder = None
        # The processor reads no template from its folder, but the tokenizer does.
        if getattr(processor, "chat_template", None) is None:
            processor.chat_template = self.tokenizer.chat_template or self.default

    def check_question(self, row: Row) -> None:
        super().check_question(row)
        self.check_pictures(row["messages"], len(row["images"]))
        if any(message["role"] == "system" for message in row["messages"]):
            raise MmdoraError("has a system message, which this model cannot read; leave it out")

    def check_pictures(self, messages: Messages, images: int) -> None:
        if images != 1:
            raise MmdoraError(f"holds {images} images; {PICTURE}")

    def packing_problem(self) -> str | None:
        return "its processor puts a picture before all text of a row"

    def example_question(self, image: Image.Image) -> tuple[dict[str, Tensor], int]:
        question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
        encoded = self.encode_prompts([Prompt(question, [image])])
        return inputs_of(self.processor, encoded), encoded["input_ids"].shape[1]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Any:
        for prompt in prompts:
            if len(prompt.images) != 1:
                raise MmdoraError(PICTURE)
        return self.encode_questions(prompts)

    def encode_questions(self, prompts: Sequence[Prompt]) -> Any:
        """The processor's tensors of questions about one picture each, padded on the left."""
        raise NotImplementedError


def check_one_answer(row: Row) -> None:
    """Raise an MmdoraError unless a row has one answer, at its end."""
    if sum(message["role"] == "assistant" for message in row["messages"]) != 1:
        raise MmdoraError("has several answers, and this model learns one a row; set data.max_turns: 1")
    if row["messages"][-1]["role"] != "assistant":
        raise MmdoraError("does not end with its answer; leave out what follows it")


class Appended(OnePicture):
    """A family that continues a question: its processor reads the question, and the answer's tokens are put behind.

    What these processors return does not tell where the text stands, so an answer cannot be found in it. A row has one
    answer. The question is the last of its conversation.
    """

    default = LAST_QUESTION

    @cached_property
    def ending(self) -> Ending:
        """The tokenizer's end token is put behind each answer."""
        return Ending(self.tokenizer, self.tokenizer.eos_token)

    def notes(self, generation_config: Any) -> list[str]:
        return self.ending.notes(generation_config)

    def check_row(self, row: Row) -> None:
        super().check_row(row)
        check_one_answer(row)

    def write(self, conversations: list[Messages], generation_prompt: bool) -> list[str]:
        """The last question, and its answer if it has one."""
        asked = [last_question(messages) for messages in conversations]
        written = self.chat.write(asked, True)
        return [
            text + (answer_text({"messages": messages}) if messages[-1]["role"] == "assistant" else "")
            for text, messages in zip(written, conversations, strict=True)
        ]

    def check_learnable(self, rows: Sequence[Row]) -> None:
        for row in rows:
            with naming(row):
                self.check_row(row)

    # --- lengths in tokens

    @cached_property
    def _more(self) -> dict[Size, int]:
        return {}

    def image_tokens(self, sizes: Sequence[Size]) -> list[int]:
        """The number of tokens of each picture, and of the marks that the processor writes around picture and text."""
        for size in sizes:
            if size not in self._more:
                blank = Prompt([said("user", "a")], [Image.new("RGB", (size[1], size[0]))])
                tokens = self._question_alone(blank)["input_ids"].shape[1]
                self._more[size] = tokens - self._tokens(self.render(blank.messages, generation_prompt=True))
        return [self._more[size] for size in sizes]

    def count_image_tokens(self, rows: Sequence[Row]) -> np.ndarray:
        for row in rows:
            with naming(row):
                self.check_question(row)
        return np.array([self.image_tokens(own)[0] for own in self._sizes(rows)], dtype=np.int32)

    def count_tokens(self, rows: Sequence[Row]) -> np.ndarray:
        asked = [self._tokens(self.render(prompt_messages(row), generation_prompt=True)) for row in rows]
        answered = [len(self._answer(row)) for row in rows]
        return np.array(asked, dtype=np.int32) + np.array(answered, dtype=np.int32) + self.count_image_tokens(rows)

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _answer(self, row: Row) -> list[int]:
        ids = self.tokenizer(answer_text(row), add_special_tokens=False)["input_ids"]
        return [*ids, *([] if self.ending.token_id is None else [self.ending.token_id])]

    # --- batches

    def batch(self, rows: Sequence[Row], features: Features | None = None) -> dict[str, Tensor]:
        each = []
        for row in rows:
            with naming(row):
                self.check_row(row)
                asked = self._question_alone(Prompt(prompt_messages(row), [open_image(row["images"][0])]))
                each.append(_continued(asked, self._answer(row), learned=not row.get("masked")))
        return self._padded(each, left=False)

    def encode_questions(self, prompts: Sequence[Prompt]) -> Any:
        return BatchFeature(self._padded([self._question_alone(prompt) for prompt in prompts], left=True))

    def encode_conversation(self, prompt: Prompt) -> Any:
        if prompt.messages[-1]["role"] != "assistant":
            return self.encode_prompts([prompt])
        row = {"messages": prompt.messages}
        asked = self._question_alone(Prompt(prompt_messages(row), prompt.images))
        ids = self.tokenizer(answer_text(row), add_special_tokens=False)["input_ids"]
        continued = _continued(asked, ids, learned=False)
        return BatchFeature({name: value for name, value in continued.items() if name != "labels"})

    def _question_alone(self, prompt: Prompt) -> dict[str, Tensor]:
        """One question as the processor's tensors. Questions are never read together, because some of these processors
        pad by rules of their own."""
        text = self.render(prompt.messages, generation_prompt=True)
        return inputs_of(self.processor, self.read([text], [prompt.images], left=True))

    def _padded(self, each: Sequence[Mapping[str, Tensor]], *, left: bool) -> dict[str, Tensor]:
        """Rows of one batch each as one batch."""
        longest, batch = max(one["input_ids"].shape[1] for one in each), {}
        for name in each[0]:
            values = [one[name] for one in each]
            if name in ALONG_TEXT:
                filler = self.tokenizer.pad_token_id if name == "input_ids" else ALONG_TEXT[name]
                missing = [longest - value.shape[1] for value in values]
                sides = [(more, 0) if left else (0, more) for more in missing]
                values = [torch.nn.functional.pad(v, side, value=filler) for v, side in zip(values, sides, strict=True)]
            batch[name] = torch.cat(values)
        return batch


def last_question(messages: Messages) -> Messages:
    """The last question of a conversation alone."""
    asked = prompt_messages({"messages": messages}) if messages[-1]["role"] == "assistant" else messages
    return asked[-1:]


def _continued(asked: Mapping[str, Tensor], answer: Sequence[int], *, learned: bool) -> dict[str, Tensor]:
    """A question's inputs with an answer behind them, and labels for the answer."""
    ids = torch.tensor([list(answer)], dtype=asked["input_ids"].dtype)
    fillers = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs = {
        name: torch.cat([value, fillers.get(name, torch.zeros_like(ids)).to(value.dtype)], 1)
        if name in ALONG_TEXT
        else value
        for name, value in asked.items()
    }
    masked = torch.full_like(asked["input_ids"], IGNORE)
    return inputs | {"labels": torch.cat([masked, ids if learned else torch.full_like(ids, IGNORE)], 1)}
