"""The function that programs call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from mmdora.demo import session
from mmdora.demo.line import Line
from mmdora.demo.pictures import check_upload
from mmdora.demo.turns import Answer, AnswerSettings, ModelColumn, check_question, new_turn
from mmdora.demo.uploads import upload_paths
from mmdora.errors import MmdoraError


def compare_api(
    columns: Sequence[ModelColumn], line: Line
) -> Callable[..., AsyncGenerator[list[dict[str, Any]], None]]:
    """The function `/compare` of the page's API, which waits in the same queue as the visitors.

    Gradio shows its docstring and the names and defaults of its parameters to callers.
    """

    async def compare(
        image: dict[str, Any] | None,
        question: str,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        system_prompt: str,
        second_image: dict[str, Any] | None = None,
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Ask every model a question about an image, about two images, or about none.

        Streams a list with one object for each model, again and again while they answer. An object has name, status
        (queued, waiting, running, done, stopped, failed), text, tokens, first_token_s, tokens_per_s, error, and the
        position while the question is in the queue. The last list has the complete answers.
        """
        try:
            settings = AnswerSettings(max_tokens, temperature, top_p, seed, system_prompt)
            pictures = upload_paths(image, second_image)
            turns = [new_turn(columns, check_question(question, settings), settings)]
            for picture in pictures:
                check_upload(picture)
            steps = line.run(
                lambda: session.answers(columns, turns, pictures),
                lambda position: tuple(Answer(column.name, "queued", position=position) for column in columns),
            )
            async with aclosing(steps):
                async for states in steps:
                    yield [state.to_dict() for state in states]
        except MmdoraError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return compare
