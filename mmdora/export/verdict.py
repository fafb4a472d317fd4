"""Compares the answers of a server with those of a checkpoint, and says what the comparison shows.

Answers are compared token by token where the server gives its token ids (vLLM does), because two programs may write the
same tokens differently: an incomplete character at the end is printed by one and left out by another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmdora.errors import MmdoraError

INCOMPLETE = "\ufffd"
"""What the bytes of a character decode to while others of it are missing."""


@dataclass(frozen=True)
class Side:
    """The answer of a checkpoint or of the server; what the server does not give is None.

    Attributes:
        text: the answer, without its end.
        prompt_tokens: number of tokens of the prompt, those of pictures included.
        answer_tokens: number of tokens of the answer, its end included.
        prompt_ids: the prompt's tokens.
        answer_ids: the answer's tokens, without its end.
    """

    text: str
    prompt_tokens: int | None
    answer_tokens: int | None
    prompt_ids: tuple[int, ...] | None = None
    answer_ids: tuple[int, ...] | None = None

    @property
    def empty(self) -> bool:
        return not self.text.strip(f"{INCOMPLETE} \n") and not self.answer_ids


@dataclass(frozen=True)
class Pair:
    """One question and its answers: the checkpoint's, the server's, and the base's if that was asked."""

    name: str
    local: Side
    served: Side
    base: Side | None = None

    @property
    def by_ids(self) -> bool:
        """Whether the answers are compared token by token."""
        return self.served.answer_ids is not None

    @property
    def difference(self) -> str | None:
        """A description of the first difference; None if there is none.

        Without token ids, the counts of an answer may differ by one, because a server may or may not count the
        end-of-turn token.
        """
        here, there = self.local, self.served
        if here.prompt_tokens != there.prompt_tokens and there.prompt_tokens is not None:
            counts = f"{here.prompt_tokens} tokens here, {there.prompt_tokens} there"
            return f"the prompt has {counts} (another chat template or number of image tokens)"
        if here.prompt_ids and there.prompt_ids and here.prompt_ids != there.prompt_ids:
            at = _parting(here.prompt_ids, there.prompt_ids)
            ids = f"token {here.prompt_ids[at]} here, {there.prompt_ids[at]} there"
            return f"the prompt has {ids} at place {at} (another chat template or tokenizer)"
        return _difference(here, there)

    @property
    def like_base(self) -> bool:
        """Whether the server answers as the base does."""
        return self.base is not None and _difference(self.base, self.served) is None

    @property
    def told_apart(self) -> bool:
        """Whether checkpoint and base answer differently, so that this question can tell which of them is served."""
        return self.base is not None and _difference(self.base, self.local) is not None


def _difference(here: Side, there: Side) -> str | None:
    """How two answers differ; None if they do not."""
    same = here.answer_ids == there.answer_ids if here.answer_ids is not None and there.answer_ids is not None else None
    if same:
        # Equal tokens are written alike but for characters that are incomplete.
        if here.text.replace(INCOMPLETE, "").strip() == there.text.replace(INCOMPLETE, "").strip():
            return None
        return f"the same tokens are written differently: {here.text[:60]!r} here, {there.text[:60]!r} there"
    mine, other = here.text.rstrip(INCOMPLETE), there.text.rstrip(INCOMPLETE)
    if mine != other:
        at = _parting(mine, other)
        return f"from character {at} on: {mine[at : at + 60]!r} here, {other[at : at + 60]!r} there"
    if same is None and there.answer_tokens is not None:
        if here.answer_tokens in (there.answer_tokens, there.answer_tokens + 1):
            return None
        return f"the answer has {here.answer_tokens} tokens here, {there.answer_tokens} there"
    if same is None:
        return None
    at = _parting(here.answer_ids or (), there.answer_ids or ())
    told = [list((side.answer_ids or ())[at : at + 8]) for side in (here, there)]
    return f"from token {at} on, written alike: {told[0]} here, {told[1]} there"


def _parting(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The first place at which two sequences differ; the length of the shorter if one begins the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def summary(pairs: Sequence[Pair]) -> str:
    """A sentence that says how many answers are equal, by what they were compared, how many are empty, and what the
    base's answers show.

    Raises:
        MmdoraError: if some answers differ; the message describes the first difference, and says whether the server
            answers as the base does.
    """
    different = [pair for pair in pairs if pair.difference]
    if different:
        raise MmdoraError(
            f"verify: {len(different)} of {len(pairs)} answers differ; the first: {different[0].name}: "
            f"{different[0].difference}; {_of_base(pairs, different)}"
        )
    return "; ".join([f"{len(pairs)} answers equal, {_compared(pairs)}", *_doubts(pairs)])


def _compared(pairs: Sequence[Pair]) -> str:
    if all(pair.by_ids for pair in pairs):
        prompts = all(pair.served.prompt_ids for pair in pairs)
        return f"token by token; prompts {'too' if prompts else 'of as many tokens'}"
    told = all(pair.served.answer_tokens is not None for pair in pairs)
    counts = "prompts and answers of as many tokens" if told else "the server does not tell its token counts"
    return f"word for word; {counts}"


def _doubts(pairs: Sequence[Pair]) -> Iterator[str]:
    """What equal answers leave open."""
    if empty := sum(pair.local.empty for pair in pairs):
        advice = ", so they show little: ask other questions by --data" if empty == len(pairs) else ""
        yield f"{empty} of them are empty (an end of turn alone){advice}"
    if pairs[0].base is not None:
        apart = sum(pair.told_apart for pair in pairs)
        yield f"the base answers {apart} of them differently" + (
            "" if apart else ", so they do not show which of the two is served: ask other questions by --data"
        )


def _of_base(pairs: Sequence[Pair], different: Sequence[Pair]) -> str:
    """Whether a server with other answers serves the base."""
    if pairs[0].base is None:
        return "--base BASE tells whether this is what the base answers"
    like = sum(pair.like_base for pair in pairs)
    if like == len(pairs):
        return f"the server answers as the base does, all {len(pairs)} times: it serves the base, without the adapter"
    return f"nor is it the base that is served: {like} of {len(pairs)} answers are the base's"
