"""Thoughts before an answer: `<think> … </think>`, in templates of Qwen3's kind.

By default a model is asked, and taught, to answer at once. Such a template then writes an empty thought before the last
answer of a conversation, which belongs to the prompt. `data.thoughts` teaches a model to think: the chat template in
use becomes one that begins with `THINKS`, which adapter and export keep, so that evaluation, page and servers ask for a
thought too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.families.template import render_with_answers
from mmdora.records.turns import Messages

THINKS = "{%- set enable_thinking = true %}\n"
"""What a template begins with that asks for thoughts, whatever its caller says."""
END_OF_THOUGHT = "</think>"
"""A template that knows thoughts parts an answer here."""
EMPTY = "<think>\n\n</think>\n\n"
"""What templates of Qwen3's kind write before the last answer if thinking is off: a thought without words."""
START = "<think>"
Spans = list[tuple[int, int]]
Write = Callable[[list[Messages], bool], list[str]]


def thinks(processor: Any) -> bool:
    """Whether a processor's chat template was made one that asks for thoughts."""
    return str(getattr(processor, "chat_template", None)).startswith(THINKS)


def without_thought(answer: str) -> str:
    """An answer without the thought that it begins with, as it is scored; the prompt may have opened the thought."""
    thought, end, rest = answer.partition(END_OF_THOUGHT)
    opened = thought.lstrip().startswith(START)
    return rest.lstrip() if end and (opened or (rest.strip() and START not in thought)) else answer


def render_at_once(
    write: Write, messages: Messages, ends: tuple[str, ...], next_turn: str | None, template: str
) -> tuple[str, Spans]:
    """The rendered conversation and the spans of its answers, of a model that answers without a thought.

    Args:
        template: the chat template in use.

    The other arguments are those of `render_with_answers`.

    Raises:
        MmdoraError: an answer holds a thought; or answers cannot be told from prompts.
    """
    if END_OF_THOUGHT in template and any(map(_has_thought, messages)):
        raise MmdoraError(
            f"its answer holds a thought ({START} … {END_OF_THOUGHT}), and the model is asked to answer at once; set "
            "data.thoughts: true to learn thoughts, or take it out of the record"
        )
    found = []

    def bare(conversations: list[Messages], generation_prompt: bool) -> list[str]:
        texts = write(conversations, generation_prompt)
        found.append(any(EMPTY in text for text in texts))
        return [text.replace(EMPTY, "") for text in texts]

    text, spans = render_with_answers(bare, messages, ends, next_turn)
    (whole,) = write([messages], False) if any(found) else (text,)
    if whole == text:
        return text, spans
    # An empty thought before the last answer belongs to the prompt, as in generation.
    start, end = spans[-1]
    if whole != text[:start] + EMPTY + text[start:]:
        raise MmdoraError("the chat template writes thoughts elsewhere than before the last answer")
    return whole, [*spans[:-1], (start + len(EMPTY), end + len(EMPTY))]


def render_with_thought(
    write: Write, messages: Messages, ends: tuple[str, ...], next_turn: str | None
) -> tuple[str, Spans]:
    """The rendered conversation and the span of its last answer, with the thought that this begins with.

    The arguments are those of `render_with_answers`.

    Raises:
        MmdoraError: the template drops the thought; or answers cannot be told from prompts.
    """
    text, spans = render_with_answers(write, messages, ends, next_turn, last_alone=True)
    last = next((message for message in reversed(messages) if message["role"] == "assistant"), None)
    if last is not None and _has_thought(last) and END_OF_THOUGHT not in text[slice(*spans[-1])]:
        raise MmdoraError("the chat template drops the thought of its answer; give one that keeps it (data.template)")
    return text, spans


def _has_thought(message: Any) -> bool:
    texts = (part.get("text", "") for part in message["content"])
    return message["role"] == "assistant" and any(END_OF_THOUGHT in text for text in texts)


def notes(processor: Any, prompt: str) -> list[str]:
    """A sentence for the user before training about a model that thinks, or is asked with an empty thought.

    Args:
        prompt: a question as the model is asked it.
    """
    if thinks(processor):
        return [
            f"thoughts are learned: an answer begins with {START} … {END_OF_THOUGHT}, which no score counts; of a "
            "conversation the last answer alone is learned, because the template drops the thoughts before it"
        ]
    if EMPTY not in prompt:
        return []
    return [f"the chat template asks with an empty thought ({EMPTY!r}): it belongs to the prompt, and is not learned"]
