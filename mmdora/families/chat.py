"""What is odd about a chat template, found by rendering a short conversation, and made even.

Two kinds are found among the templates on the hub. Some write the list of a message's parts as Python shows it, where
they expect a text (GLM-4.1V's answers). Some open an answer otherwise in a conversation than in the prompt for it:
LLaVA-OneVision's writes `assistant \\n` and asks with `assistant\\n`, and Gemma 4's asks with an empty thought before
the answer. A model is asked with the prompt, so that is how the answers are written here, in training as on the page.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from mmdora.errors import MmdoraError
from mmdora.families.template import apply_template, check_texts
from mmdora.families.thoughts import thinks
from mmdora.records.turns import Messages

QUESTION, ANSWER = "Qq", "Zz"
"""Texts of the conversation that is rendered; no template writes them by itself."""
Strings = Literal["none", "answers", "all"]
"""Which messages without a picture a template wants as a text instead of a list of parts."""


class Chat:
    """A processor's chat template.

    Args:
        processor: a processor whose `chat_template` writes conversations.
        marks: special tokens, one of which must open an answer if its opening shall be changed.
    """

    def __init__(self, processor: Any, marks: Sequence[str]):
        self.processor, self.marks = processor, marks

    def write(self, conversations: list[Messages], generation_prompt: bool) -> list[str]:
        """Conversations as text; each image is still a placeholder.

        Args:
            conversations: the last of them holds the texts of the others.
            generation_prompt: whether each ends with the opening of an answer.
        """
        check_texts(conversations[-1], getattr(self.processor, "image_token", None))
        texts = self._written(conversations, generation_prompt, self.strings)
        if self.openings is None:
            return texts
        opened, asked = self.openings
        end = asked if generation_prompt else ""
        return [text[: len(text) - len(end)].replace(opened, asked) + end for text in texts]

    @cached_property
    def strings(self) -> Strings:
        """Which messages the template wants as texts."""
        talk = [said("user", QUESTION), said("assistant", ANSWER)]
        try:
            (text,) = self._written([talk], False, "none")
        except MmdoraError:
            self._written([talk], False, "all")
            return "all"
        if repr(talk[1]["content"]) in text:
            return "answers"
        try:  # Qwen3's template writes nothing in place of a list.
            (other,) = ("",) if QUESTION in text and ANSWER in text else self._written([talk], False, "all")
        except MmdoraError:
            other = ""
        return "all" if QUESTION in other and ANSWER in other else "none"

    @cached_property
    def openings(self) -> tuple[str, str] | None:
        """How the template opens an answer, and how it asks for one, where that is to be used instead."""
        question = [said("user", QUESTION)]
        before, whole = self._written([question, [*question, said("assistant", ANSWER)]], False, self.strings)
        (prompt,) = self._written([question], True, self.strings)
        if whole.startswith(prompt) or not (prompt.startswith(before) and whole.startswith(before)):
            return None
        opened, asked = whole[len(before) :].partition(ANSWER)[0], prompt[len(before) :]
        same = opened.split() == asked.split() or asked.startswith(opened)
        return (opened, asked) if same and any(mark in opened for mark in self.marks) else None

    def notes(self) -> list[str]:
        """A sentence for the user before training, if the template opens an answer in two ways."""
        if self.openings is None:
            return []
        opened, asked = self.openings
        return [f"the chat template opens an answer by {opened!r} and asks for one by {asked!r}: the second is learned"]

    def _written(self, conversations: list[Messages], generation_prompt: bool, strings: Strings) -> list[str]:
        if strings != "none":
            conversations = [[_as_text(message, strings) for message in messages] for messages in conversations]
        # Models that can think aloud answer at once, unless `data.thoughts` says otherwise. A processor warns of
        # unknown variables.
        known = "enable_thinking" in str(getattr(self.processor, "chat_template", None))
        at_once = {"enable_thinking": False} if known and not thinks(self.processor) else {}
        # Older versions of transformers let a template change the messages, which are the caller's.
        return apply_template(self.processor, copy.deepcopy(conversations), generation_prompt, **at_once)


def said(role: str, text: str) -> dict[str, Any]:
    """A message of one text."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _as_text(message: Any, strings: Strings) -> Any:
    parts = message["content"]
    if (strings == "answers" and message["role"] == "user") or any(part["type"] != "text" for part in parts):
        return message
    return message | {"content": "".join(part["text"] for part in parts)}
