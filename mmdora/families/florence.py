"""Florence-2: a prompt about one picture, or the mark of a task (`<OD>`, `<CAPTION>`), and an answer by a decoder.

The prompt is the question as it is (Xiao et al. 2023, arXiv:2311.06242, section 3); the processor itself writes a mark
out as its authors' prompt, and puts the picture before it. A prompt of one's own is learned by training, as in
Microsoft's example of fine-tuning on DocVQA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from mmdora.errors import MmdoraError
from mmdora.families.encoder_decoder import EncoderDecoder
from mmdora.families.expansion import Size
from mmdora.families.learning import Features
from mmdora.families.one_picture import LAST_QUESTION, OnePicture, check_one_answer, last_question
from mmdora.families.prompt import Prompt
from mmdora.families.template import inputs_of
from mmdora.records.images import open_image
from mmdora.records.row import Row, naming
from mmdora.records.turns import Messages, answer_text, prompt_messages


class Florence2(EncoderDecoder, OnePicture):
    """Florence-2. A row has one picture, one question and one answer; of a conversation, the last question is read."""

    default = LAST_QUESTION

    def check_row(self, row: Row) -> None:
        self.check_question(row)
        check_one_answer(row)

    def check_question(self, row: Row) -> None:
        super().check_question(row)
        self.write([row["messages"]], True)

    def write(self, conversations: list[Messages], generation_prompt: bool) -> list[str]:
        """The last question, which the processor completes; the answer is the decoder's."""
        asked = [
            last_question(messages if messages[-1]["role"] != "assistant" else messages[:-1])
            for messages in conversations
        ]
        texts = self.chat.write(asked, True)
        for text in texts:
            mark = next((mark for mark in self.processor.task_prompts_without_inputs if mark in text), None)
            if mark not in (None, text):
                raise MmdoraError(f"{mark} is asked by itself, without {text.replace(mark, '').strip()!r:.60}")
        return texts

    def image_tokens(self, sizes: Sequence[Size]) -> list[int]:
        return [self.processor.num_image_tokens] * len(sizes)

    def count_image_tokens(self, rows: Sequence[Row]) -> np.ndarray:
        for row in rows:
            with naming(row):
                self.check_question(row)
        return np.full(len(rows), self.processor.num_image_tokens, dtype=np.int32)

    def count_tokens(self, rows: Sequence[Row]) -> np.ndarray:
        """[rows] int32: tokens of the question with its start, end and picture, and those of the answer."""
        asked = self.processor(text=[self.render(row["messages"]) for row in rows])["input_ids"]
        answered = self.tokenizer(text_target=[answer_text(row) for row in rows])["input_ids"]
        words = [len(question) + 2 + len(answer) for question, answer in zip(asked, answered, strict=True)]
        return np.array(words, dtype=np.int32) + self.count_image_tokens(rows)

    def batch(self, rows: Sequence[Row], features: Features | None = None) -> dict[str, Tensor]:
        prompts = []
        for row in rows:
            with naming(row):
                self.check_row(row)
                prompts.append(Prompt(prompt_messages(row), [open_image(image) for image in row["images"]]))
        return inputs_of(self.processor, self.encode_questions(prompts)) | {"labels": self._targets(rows)}

    def read(self, texts: list[str], images: list[list[Image.Image]], *, left: bool, offsets: bool = False) -> Any:
        """The processor's tensors, padded on the right because BART counts positions from the first token."""
        pictures = [image for own in images for image in own]
        return self.processor(text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt")

    def encode_questions(self, prompts: Sequence[Prompt]) -> Any:
        texts = [self.render(prompt.messages, generation_prompt=True) for prompt in prompts]
        return self.read(texts, [prompt.images for prompt in prompts], left=False)

    def encode_conversation(self, prompt: Prompt) -> Any:
        """The question, and what the decoder has written of the answer, or its start if there is no answer."""
        answered = prompt.messages[-1]["role"] == "assistant"
        words = answer_text({"messages": prompt.messages}) if answered else ""
        encoded = self.encode_questions([prompt])
        target = self.tokenizer(text_target=[words], return_tensors="pt")["input_ids"]
        return BatchFeature({**encoded, "decoder_input_ids": target.roll(1)})
