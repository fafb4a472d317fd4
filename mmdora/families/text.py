"""Causal language models without a tower: the general family, whose processor is a tokenizer and which sees no picture.

A base that was never tuned to chat has no chat template. It is then asked by the prompt of Stanford Alpaca (Taori et
al., 2023, https://github.com/tatsu-lab/stanford_alpaca), which LLM-Adapters and the DoRA paper use for LLaMA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from mmdora.errors import MmdoraError
from mmdora.families.family import Family
from mmdora.families.prompt import Prompt
from mmdora.families.template import apply_template, encode, inputs_of
from mmdora.records.row import Row, naming
from mmdora.records.turns import Messages

ALPACA = (
    "{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- set turns = messages[1:] %}"
    "{%- else %}{{- 'Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.' }}{%- set turns = messages %}{%- endif %}"
    "{%- for message in turns %}"
    "{%- if message['role'] == 'assistant' %}{{- message['content'] }}{{- eos_token }}"
    "{%- else %}{{- '\\n\\n### Instruction:\\n' + message['content'] + '\\n\\n### Response:\\n' }}{%- endif %}"
    "{%- endfor %}"
)
"""Alpaca's prompt as a chat template. A system message stands in place of its first sentences. The line break behind
"Response:" is Alpaca-LoRA's, by which no token holds both the end of the prompt and the start of the answer. An answer
follows each question in a prompt of this form, so it needs no `add_generation_prompt`."""
PICTURED = "holds a picture, and this model reads text alone; leave such records out"


class Text(Family):
    """A causal language model; its processor is its tokenizer.

    A tokenizer without a token for padding gets one (any does, since padding is masked), and one without a chat
    template gets `ALPACA`. Models that can think aloud are asked, and taught, to answer at once.

    Raises:
        MmdoraError: if the tokenizer cannot tell where in a text its tokens stand.
    """

    sees = False

    def __init__(self, processor: Any):
        self.processor = self.tokenizer = processor
        self.placeholder = None
        if not processor.is_fast:
            raise MmdoraError(
                f"{type(processor).__name__} is a slow tokenizer, which does not tell where in a text its tokens stand;"
                " save the base with a tokenizer.json"
            )
        if processor.pad_token is None:
            processor.pad_token = processor.unk_token or processor.eos_token
        if processor.chat_template is None:
            processor.chat_template = default_template(processor)

    def check_question(self, row: Row) -> None:
        super().check_question(row)
        self.check_pictures(row["messages"], len(row["images"]))

    def check_pictures(self, messages: Messages, images: int) -> None:
        if images:
            raise MmdoraError(PICTURED)

    def write(self, conversations: list[Messages], generation_prompt: bool) -> list[str]:
        joined = [[message | {"content": _text(message)} for message in messages] for messages in conversations]
        return apply_template(self.processor, joined, generation_prompt, enable_thinking=False)

    def notes(self, generation_config: Any) -> list[str]:
        return [*self.thought_notes(), *self.ending.notes(generation_config)]

    def count_image_tokens(self, rows: Sequence[Row]) -> np.ndarray:
        for row in rows:
            with naming(row):
                self.check_pictures(row["messages"], len(row["images"]))
        return np.zeros(len(rows), dtype=np.int32)

    def image_tokens(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        raise MmdoraError("this model reads text alone, and no picture")

    def example_question(self, image: Image.Image) -> tuple[dict[str, Tensor], int]:
        """One question as tensors, and its number of tokens; the picture is not shown."""
        question = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}]
        encoded = encode(self.processor, [self.render(question, generation_prompt=True)], [[]], left=False)
        return inputs_of(self.processor, encoded), encoded["input_ids"].shape[1]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Any:
        for prompt in prompts:
            if prompt.images:
                raise MmdoraError("this model reads text alone; ask it without a picture")
        return super().encode_prompts(prompts)


def default_template(tokenizer: Any) -> str:
    """`ALPACA`, with the start token if the tokenizer itself begins every text with it.

    Whoever renders the template without mmdora has to get the start token too, and such a caller lets the tokenizer
    add none.
    """
    first = tokenizer("a")["input_ids"][0]
    return ("{{- bos_token }}" if first == tokenizer.bos_token_id else "") + ALPACA


def _text(message: Any) -> str:
    """The content of a message as one text: templates of language models know no parts."""
    if any(part["type"] != "text" for part in message["content"]):
        raise MmdoraError(PICTURED)
    return "".join(part["text"] for part in message["content"])
