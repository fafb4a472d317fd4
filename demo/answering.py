"""The functions by which a model answers: in this process, as an adapter on a shared base, or on a server.

Without Gradio.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from mmdora.demo.shared_base import SharedBase
from mmdora.demo.turns import AnswerSettings
from mmdora.errors import MmdoraError
from mmdora.evaluate.asking import Asking
from mmdora.evaluate.tasks import Task
from mmdora.families import Prompt, family_of
from mmdora.predict.answers import Partial, generate, stream
from mmdora.predict.endpoint import Endpoint
from mmdora.records.row import Row


def local(model: Any, processor: Any) -> Callable[[Prompt, AnswerSettings, threading.Event], Iterator[Partial]]:
    """A function by which a model in this process answers."""

    def speak(prompt: Prompt, settings: AnswerSettings, stop: threading.Event) -> Iterator[Partial]:
        if settings.strength != 1:
            raise MmdoraError("how much adapter: this model was loaded whole; start the page with --shared-base")
        system = settings.system_prompt
        if system and system not in family_of(processor).render(prompt.messages, generation_prompt=True):
            raise MmdoraError("the chat template of this model has no place for a system prompt")
        return stream(
            model,
            processor,
            prompt,
            max_new_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            stop=stop,
        )

    return speak


def in_batches(
    model: Any, processor: Any, before: Callable[[], object] = lambda: None
) -> Callable[[Task, Sequence[Row], threading.Event], list[str]]:
    """A function by which a model in this process answers the questions of a task, worded as `mmdora eval` words them.

    Args:
        before: called before each batch.
    """

    def reply(task: Task, rows: Sequence[Row], stop: threading.Event) -> list[str]:
        before()
        asking = Asking(processor, task)
        ((_, prompts),) = asking.prompts(rows, [list(range(len(rows)))], [0])
        return generate(
            model,
            processor,
            prompts,
            max_new_tokens=task.max_new_tokens,
            batch_size=len(prompts),
            answers=asking.answers,
            stop=stop,
        )

    return reply


def switched(base: SharedBase, adapter: Any) -> Callable[[Prompt, AnswerSettings, threading.Event], Iterator[Partial]]:
    """A function by which an adapter on a shared base answers. Its caller has to hold the device's lock."""
    speak = local(base.model, base.processor)

    def switch(prompt: Prompt, settings: AnswerSettings, stop: threading.Event) -> Iterator[Partial]:
        base.wear(adapter, settings.strength)
        return speak(prompt, replace(settings, strength=1.0), stop)

    return switch


def served(endpoint: Endpoint) -> Callable[[Prompt, AnswerSettings, threading.Event], Iterator[Partial]]:
    """A function by which a server answers."""

    def speak(prompt: Prompt, settings: AnswerSettings, stop: threading.Event) -> Iterator[Partial]:
        if settings.strength != 1:
            raise MmdoraError("how much adapter: a server's model cannot be scaled here")
        return endpoint.stream(
            prompt,
            max_new_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            stop=stop,
        )

    return speak
