"""Families whose processor writes more than its chat template does: before a conversation, or behind it.

What stands in front of a text shifts the places of its answers, and a mark behind it must not follow an answer that is
learned. So these families write the text themselves, and read it by a copy of the processor that adds nothing.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.families.family import Family
from mmdora.families.template import check_places, encode
from mmdora.records.row import Row
from mmdora.records.turns import Messages

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language.\n\n"
)
"""`DEFAULT_SYSTEM_PROMPT` of `transformers.models.janus.processing_janus`."""


class Janus(Family):
    """Janus, whose processor puts a system text before each conversation if its files say so."""

    def __init__(self, processor: Any):
        super().__init__(processor)
        self.before = SYSTEM if processor.use_default_system_prompt else ""
        self._plain = copy(processor)
        self._plain.use_default_system_prompt = False

    def write(self, conversations: list[Messages], generation_prompt: bool) -> list[str]:
        return [self.before + text for text in super().write(conversations, generation_prompt)]

    def read(self, texts: list[str], images: list[list[Image.Image]], *, left: bool, offsets: bool = False) -> Any:
        return encode(self._plain, texts, images, left=left, offsets=offsets)


class Emu3(Family):
    """Emu3, whose processor puts a start token before each text, told not to or not, so it gets texts without one."""

    def write(self, conversations: list[Messages], generation_prompt: bool) -> list[str]:
        return [self.tokenizer.bos_token + text for text in super().write(conversations, generation_prompt)]

    def read(self, texts: list[str], images: list[list[Image.Image]], *, left: bool, offsets: bool = False) -> Any:
        bare = [text.removeprefix(self.tokenizer.bos_token) for text in texts]
        return encode(self.processor, bare, images, left=left, offsets=offsets)


class Molmo2(Family):
    """Molmo 2, whose processor puts a start token before each text that has none."""

    def write(self, conversations: list[Messages], generation_prompt: bool) -> list[str]:
        start = self.tokenizer.bos_token or self.tokenizer.eos_token
        texts = super().write(conversations, generation_prompt)
        return [text if text.startswith(start) else start + text for text in texts]


class Chameleon(Family):
    """Chameleon, whose processor puts a separator behind a question, and whose checkpoints have no chat template.

    A conversation is written as its parts stand, with the separator between a question and its answer.
    """

    def __init__(self, processor: Any):
        super().__init__(processor)
        self._plain = copy(processor)
        self._plain.return_for_text_completion = True
        if self.tokenizer.sep_token_id in self._plain(text=["a"])["input_ids"][0]:
            raise MmdoraError(
                "the processor of Chameleon puts a separator behind answers too, told not to; "
                "pip install -U 'transformers>=5.23'"
            )
        if getattr(processor, "chat_template", None) is None:
            processor.chat_template = self.tokenizer.chat_template or (
                "{%- for message in messages %}"
                f"{{{{- {self.tokenizer.sep_token!r} if message['role'] == 'assistant' else '' }}}}"
                "{%- for part in message['content'] %}"
                "{{- '<image>' if part['type'] == 'image' else part['text'] }}{%- endfor %}{%- endfor %}"
            )
        self.placeholder = str(processor.image_token)

    def write(self, conversations: list[Messages], generation_prompt: bool) -> list[str]:
        after = self.tokenizer.sep_token if generation_prompt else ""
        return [text + after for text in super().write(conversations, generation_prompt)]

    def read(self, texts: list[str], images: list[list[Image.Image]], *, left: bool, offsets: bool = False) -> Any:
        return encode(self._plain, texts, images, left=left, offsets=offsets)


GOT_SYSTEM = "system\nYou should follow the instructions carefully and explain your answers in detail."
"""`system_query` of `transformers.models.got_ocr2.processing_got_ocr2`."""


class GotOcr2(Family):
    """GOT-OCR 2.0, whose processor itself writes the conversation that its checkpoints' template lacks.

    Its questions are the tasks `OCR: ` and `OCR with format: `; one picture a row.
    """

    reads_conversations = False

    default = (
        f"{{{{- '<|im_start|>' }}}}{GOT_SYSTEM}{{{{- '<|im_end|>' }}}}"
        "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' }}"
        "{%- for part in message['content'] if part['type'] == 'image' %}"
        "{{- '<img><imgpad></img>\\n' }}{%- endfor %}"
        "{%- for part in message['content'] if part['type'] == 'text' %}{{- part['text'] }}{%- endfor %}"
        "{{- '<|im_end|>' }}{%- endfor %}"
        "{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
    )

    def __init__(self, processor: Any):
        super().__init__(processor)
        if getattr(processor, "chat_template", None) is None:
            processor.chat_template = self.tokenizer.chat_template or self.default

    def check_question(self, row: Row) -> None:
        super().check_question(row)
        self.check_pictures(row["messages"], len(row["images"]))

    def check_pictures(self, messages: Messages, images: int) -> None:
        if images != 1:
            raise MmdoraError(f"holds {images} images; this model reads one picture; give exactly one")
        check_places(self.render(messages), self.placeholder, images)

    def read(self, texts: list[str], images: list[list[Image.Image]], *, left: bool, offsets: bool = False) -> Any:
        """The processor takes one picture a text, in one list."""
        if any(len(own) != 1 for own in images):
            raise MmdoraError("this model reads one picture; give exactly one")
        flat: Any = [own[0] for own in images]
        return encode(self.processor, texts, flat, left=left, offsets=offsets)
