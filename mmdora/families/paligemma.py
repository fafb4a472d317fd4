"""PaliGemma and PaliGemma 2: a question about pictures is a prefix, and its answer a suffix.

The prefix sees itself both ways, and only the suffix is causal, so the model has to be told which is which
(`token_type_ids`). The processor does that if it is given both texts apart. It puts the start token behind the pictures
and a line break behind the question, and writes no roles: the model is not a conversational one (Beyer et al. 2024,
arXiv:2407.07726, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from mmdora.errors import MmdoraError
from mmdora.families.ending import Ending
from mmdora.families.family import Family
from mmdora.families.learning import Features
from mmdora.families.one_picture import check_one_answer
from mmdora.families.prompt import Prompt
from mmdora.families.template import IGNORE, inputs_of
from mmdora.records.images import open_image
from mmdora.records.row import Row, naming
from mmdora.records.turns import Messages, answer_text, prompt_messages


class PaliGemma(Family):
    """PaliGemma, whose rows have one question, its pictures, and one answer.

    A question is written as it is, so a task's own words (`answer en`, `caption en`) belong into the records. If the
    base has a chat template, that writes the prefix. Of a conversation, the last question alone is read.
    """

    @cached_property
    def ending(self) -> Ending:
        """The processor appends the tokenizer's end token to each suffix."""
        return Ending(self.tokenizer, self.tokenizer.eos_token)

    def notes(self, generation_config: Any) -> list[str]:
        return self.ending.notes(generation_config)

    def check_row(self, row: Row) -> None:
        super().check_row(row)
        check_one_answer(row)

    def check_question(self, row: Row) -> None:
        super().check_question(row)
        if not row["images"]:
            raise MmdoraError("has no picture, and this model answers questions about pictures only")
        if any(message["role"] == "system" for message in row["messages"]):
            raise MmdoraError("has a system message, which this model cannot read; leave it out")

    def write(self, conversations: list[Messages], generation_prompt: bool) -> list[str]:
        """The last question with its pictures' places before it, and the answer on a line of its own, if it has one."""
        return ["\n".join([self._prefix(messages), *_answers(messages)]) for messages in conversations]

    def _prefix(self, messages: Messages) -> str:
        asked = prompt_messages({"messages": messages}) if messages[-1]["role"] == "assistant" else messages
        if self.processor.chat_template is not None:
            return self.chat.write([asked], True)[0]
        pictures = sum(part["type"] == "image" for message in asked for part in message["content"])
        words = "".join(part["text"] for part in asked[-1]["content"] if part["type"] == "text")
        return self.processor.image_token * pictures + words

    def count_tokens(self, rows: Sequence[Row]) -> np.ndarray:
        prefixes, suffixes = [], []
        for row, sizes in zip(rows, self._sizes(rows), strict=True):
            with naming(row):
                text, _ = self.expansions.into(self._prefix(row["messages"]), sizes)
            place = text.rfind(self.processor.image_token) + len(self.processor.image_token)
            prefixes.append(f"{text[:place]}{self.tokenizer.bos_token}{text[place:]}\n")
            suffixes.append("".join(_answers(row["messages"])) + self.tokenizer.eos_token)
        ids = self.tokenizer(prefixes, text_pair=suffixes, return_attention_mask=False, verbose=False)
        return np.array([len(each) for each in ids["input_ids"]], dtype=np.int32)

    def batch(self, rows: Sequence[Row], features: Features | None = None) -> dict[str, Tensor]:
        images = []
        for row in rows:
            with naming(row):
                self.check_row(row)
                images.append([open_image(image) for image in row["images"]])
        batch = self._read([row["messages"] for row in rows], images, left=False)
        for index, row in enumerate(rows):
            if row.get("masked"):
                batch["labels"][index] = IGNORE
        return batch

    def _read(self, conversations: Sequence[Messages], images: list[list[Image.Image]], *, left: bool) -> Any:
        """The processor's tensors; with `labels` if the conversations end with answers."""
        suffix = ["".join(_answers(messages)) for messages in conversations]
        answered = conversations[0][-1]["role"] == "assistant"
        encoded = self.processor(
            text=[self._prefix(messages) for messages in conversations],
            images=images,
            suffix=suffix if answered else None,
            padding=True,
            padding_side="left" if left else "right",
            return_tensors="pt",
        )
        if not answered:
            encoded.pop("labels", None)
        return inputs_of(self.processor, encoded) if answered else encoded

    def example_question(self, image: Image.Image) -> tuple[dict[str, Tensor], int]:
        question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
        encoded = self._read([question], [[image]], left=False)
        return inputs_of(self.processor, encoded), encoded["input_ids"].shape[1]

    def packing_problem(self) -> str | None:
        return "its questions see themselves both ways, which packed rows cannot keep apart"

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Any:
        for prompt in prompts:
            if not prompt.images:
                raise MmdoraError("this model answers questions about pictures only; give one")
        return self._read([prompt.messages for prompt in prompts], [prompt.images for prompt in prompts], left=True)

    def encode_conversation(self, prompt: Prompt) -> Any:
        if prompt.messages[-1]["role"] != "assistant":
            return self.encode_prompts([prompt])
        read = self._read([prompt.messages], [prompt.images], left=False)
        return BatchFeature({name: value for name, value in read.items() if name != "labels"})


def _answers(messages: Messages) -> list[str]:
    """The answer that a conversation ends with; none if it ends with a question."""
    return [answer_text({"messages": messages})] if messages[-1]["role"] == "assistant" else []
