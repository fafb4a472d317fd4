"""BLIP-2 and InstructBLIP with a decoder as language model (OPT, Vicuna): one picture, whose tokens precede all text.

Their processors have no chat template, and put the picture before the start token, whatever the text says. The default
templates are the prompts of the authors (LAVIS): for BLIP-2 "Question: … Answer:" (Li et al. 2023, arXiv:2301.12597,
section 4.2), for InstructBLIP the instruction as it stands (Dai et al. 2023, arXiv:2305.06500, section 2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdora.errors import MmdoraError
from mmdora.families.expansion import Size
from mmdora.families.learning import Features
from mmdora.families.one_picture import OnePicture
from mmdora.families.prompt import Prompt
from mmdora.families.template import IGNORE, inputs_of, needs_start_token
from mmdora.records.images import open_image
from mmdora.records.row import Row, naming
from mmdora.records.turns import Messages

TEXT = "{%- for part in message['content'] if part['type'] == 'text' %}{{- part['text'] }}{%- endfor %}"
TURNS = (
    "{{%- for message in messages %}}{{{{- '' if loop.first else ' ' }}}}"
    "{{%- if message['role'] == 'assistant' %}}{text}"
    "{{%- else %}}{{{{- {before!r} }}}}{text}{{{{- {after!r} }}}}{{%- endif %}}{{%- endfor %}}"
)
"""A conversation whose turns are parted by blanks. A question ends with what asks for its answer, so the template needs
no `add_generation_prompt`."""


class Blip2(OnePicture):
    """BLIP-2. A conversation is written as `Question: … Answer: … Question: … Answer:`."""

    default = TURNS.format(text=TEXT, before="Question: ", after=" Answer:")

    def __init__(self, processor: Any):
        given = processor.chat_template
        super().__init__(processor)
        self.image_id = self.tokenizer.convert_tokens_to_ids(str(processor.image_token))
        if self.tokenizer.bos_token is None:  # Flan-T5 has no start token, and cannot be taught by a template.
            processor.chat_template = given

    def write(self, conversations: list[Messages], generation_prompt: bool) -> list[str]:
        if self.tokenizer.bos_token is None:
            raise MmdoraError(
                f"{type(self.processor).__name__}: its language model is an encoder-decoder (Flan-T5), which cannot be "
                "trained or asked here; take the checkpoint with OPT or Vicuna"
            )
        texts, image = self.chat.write(conversations, generation_prompt), str(self.processor.image_token)
        if any(image in text for text in texts):
            raise MmdoraError(f"the chat template writes {image!r}, which the processor itself does; leave it out")
        return texts

    def image_tokens(self, sizes: Sequence[Size]) -> list[int]:
        return [self.processor.num_query_tokens] * len(sizes)

    def _count_pictures(self, rows: Sequence[Row]) -> np.ndarray:
        for row in rows:
            with naming(row):
                self.check_question(row)
        return np.full(len(rows), self.processor.num_query_tokens, dtype=np.int32)

    def batch(self, rows: Sequence[Row], features: Features | None = None) -> dict[str, Tensor]:
        texts, spans = self._written(rows)
        images = []
        for row in rows:
            with naming(row):
                images.append([open_image(image) for image in row["images"]])
        special = needs_start_token(self.processor, texts)
        words = self.tokenizer(
            texts, padding=True, padding_side="right", add_special_tokens=special, return_offsets_mapping=True
        )
        labels = torch.tensor(self._labels(rows, words, texts, spans))
        for index, row in enumerate(rows):
            if row.get("masked"):
                labels[index] = IGNORE
        before = torch.full((len(rows), self.processor.num_query_tokens), IGNORE)
        prompts = [text[: own[0][0]] for text, own in zip(texts, spans, strict=True)]
        encoded = self._read(texts, prompts, images, left=False)
        return inputs_of(self.processor, encoded) | {"labels": torch.cat([before, labels], 1)}

    def _read(self, texts: list[str], prompts: list[str], images: list[list[Image.Image]], *, left: bool) -> Any:
        """The processor's tensors; padding stands between the picture's tokens and the text, or behind the text.

        Args:
            prompts: what each text asks, without its answers.
        """
        return self.processor(
            text=texts,
            images=[image for own in images for image in own],
            padding=True,
            padding_side="left" if left else "right",
            add_special_tokens=needs_start_token(self.processor, texts),
            return_tensors="pt",
        )

    def encode_questions(self, prompts: Sequence[Prompt]) -> Any:
        texts = [self.render(prompt.messages, generation_prompt=True) for prompt in prompts]
        return self._read(texts, texts, [prompt.images for prompt in prompts], left=True)

    def encode_conversation(self, prompt: Prompt) -> Any:
        if prompt.messages[-1]["role"] != "assistant":
            return self.encode_prompts([prompt])
        text, spans = self.render_with_answers(prompt.messages)
        return self._read([text], [text[: spans[0][0]]], [prompt.images], left=False)


class InstructBlip(Blip2):
    """InstructBLIP, whose Q-Former reads the question too; it must not see the answer, so a row has one."""

    default = TURNS.format(text=TEXT, before="", after="")

    def check_row(self, row: Row) -> None:
        super().check_row(row)
        if sum(message["role"] == "assistant" for message in row["messages"]) != 1:
            raise MmdoraError("has several answers, and this model learns one a row; set data.max_turns: 1")

    def _read(self, texts: list[str], prompts: list[str], images: list[list[Image.Image]], *, left: bool) -> Any:
        encoded = super()._read(texts, prompts, images, left=left)
        asked = self.processor.qformer_tokenizer(
            prompts, padding=True, padding_side="left" if left else "right", return_tensors="pt"
        )
        for name in ("input_ids", "attention_mask"):
            encoded[f"qformer_{name}"] = asked[name]
        return encoded
