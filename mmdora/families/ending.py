"""How an answer ends: generation has to stop at the token that training teaches as the end of a turn.

Three files of a base can disagree about that token: the chat template, the tokenizer's configuration and the generation
config. A template that writes no end of turn (LLaVA-1.5's on the hub: `USER: … ASSISTANT: …`) would teach a model never
to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdora.records.turns import Messages


def end_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The special tokens of a tokenizer, any of which a template may write behind an answer."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(special | ({tokenizer.eos_token} if tokenizer.eos_token else set()))


def written_end(text: str, ends: Sequence[str]) -> str | None:
    """The token that a rendered turn ends with, ignoring blanks after it; None if the turn ends with its text."""
    body = text.rstrip()
    return max((end for end in ends if body.endswith(end)), key=len, default=None)


class Ending:
    """The token that ends an answer: training teaches it, and generation stops at it.

    Args:
        tokenizer: the tokenizer of the family's processor.
        written: the token that the chat template writes after an answer. None if it writes none; then the tokenizer's
            own end token is added after each answer, as `</s>` was in the training of LLaVA-1.5.
        next_turn: the token between an answer and the next turn, in families whose answers end with it. It is added
            after the last answer only, because the template itself writes it after the others.
    """

    def __init__(self, tokenizer: Any, written: str | None, next_turn: str | None = None):
        self.tokenizer, self.written, self.next_turn = tokenizer, written, next_turn
        self.token: str | None = written or next_turn or tokenizer.eos_token

    @property
    def token_id(self) -> int | None:
        return None if self.token is None else self.tokenizer.convert_tokens_to_ids(self.token)

    def added(self, messages: Messages) -> Messages:
        """The conversation with the token appended to each answer, if the template does not write one itself."""
        if self.written is not None or self.token is None:
            return messages
        last = len(messages) - 1
        return [
            self._ended(message)
            if message["role"] == "assistant" and (self.next_turn is None or number == last)
            else message
            for number, message in enumerate(messages)
        ]

    def _ended(self, message: Any) -> Any:
        *before, last = message["content"] or [{"type": "text", "text": ""}]
        return message | {"content": [*before, last | {"text": f"{last['text']}{self.token}"}]}

    def base_stops(self, generation_config: Any) -> list[int]:
        """The ids at which the base's own files tell generation to stop."""
        stops = generation_config.eos_token_id if generation_config is not None else None
        stops = self.tokenizer.eos_token_id if stops is None else stops
        return [] if stops is None else [stops] if isinstance(stops, int) else list(stops)

    def stops(self, generation_config: Any) -> list[int]:
        """The ids at which generation stops: those in the base's files, and the end that training teaches."""
        stops, end = self.base_stops(generation_config), self.token_id
        return stops if end is None or end in stops else [*stops, end]

    def notes(self, generation_config: Any) -> list[str]:
        """Sentences for the user before training: an end is added, files disagree about it, or there is none."""
        if self.token is None:
            return ["neither the chat template nor the tokenizer has an end of turn: this model will never stop"]
        notes, stops = [], self.base_stops(generation_config)
        if self.written is None:
            notes.append(f"the chat template writes no end of turn, so {self.token} is added behind each answer")
        if self.token_id not in stops:
            told = ", ".join(self.tokenizer.convert_ids_to_tokens(stops)) or "nothing"
            notes.append(
                f"answers end with {self.token}, but the base's generation config stops at {told}: evaluation, page "
                "and export stop at both"
            )
        return notes
