"""Records out of the parts that official rows have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.records.llava_json import PLACEHOLDER
from mmdora.records.record import Record

LETTERS = "ABCDEFGHIJ"

# A path below the images root, a tuple of paths of which the first that exists is meant, or the file itself.
Picture = str | tuple[str, ...] | bytes


def asked(name: Any, pictures: Sequence[Picture], question: str, answer: str | None, /, **meta: Any) -> Record:
    """A question, after its pictures, and its answer.

    Args:
        name: the official id; `record["id"]` is its text.
        answer: None where the official file holds none (test sets): the last message is then empty.
        meta: official ids and fields that a score or a result file needs; None values are left out.
    """
    for field, text in (("question", question), ("answer", answer or "")):
        if not isinstance(text, str):
            raise MmdoraError(f"{field} must be text, not {type(text).__name__}")
    marks = [{"type": "image"} for _ in pictures]
    reply = [] if answer is None else [{"type": "text", "text": answer}]
    return {
        "id": str(name),
        "messages": [
            {"role": "user", "content": [*marks, {"type": "text", "text": question}]},
            {"role": "assistant", "content": reply},
        ],
        "images": list(pictures),
        "meta": {key: value for key, value in meta.items() if value is not None},
    }


def choice(
    name: Any,
    pictures: Sequence[Picture],
    question: str,
    choices: Sequence[str],
    right: int | None,
    *,
    context: str = "",
    **meta: Any,
) -> Record:
    """A multiple-choice question: options under letters, as LLaVA-1.5's evaluation writes them; the answer is a letter.

    `meta` gains `question`, `choices` and, where it is known, the index `answer`.
    """
    if not 2 <= len(choices) <= len(LETTERS):
        raise MmdoraError(f"{len(choices)} choices; 2 to {len(LETTERS)} are expected")
    if right is not None and not 0 <= right < len(choices):
        raise MmdoraError(f"the answer {right} is none of the {len(choices)} choices")
    lines = [context] * bool(context) + [question]
    lines += [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False)]
    answer = None if right is None else LETTERS[right]
    return asked(
        name, pictures, "\n".join(lines), answer, question=question, choices=list(choices), answer=right, **meta
    )


def captioned(
    name: Any,
    pictures: Sequence[Picture],
    prompt: str,
    captions: Sequence[tuple[Any, str]],
    split: str | None,
    **meta: Any,
) -> Iterator[Record]:
    """The captions, (id, text), of one image or clip: in `train` a record each, elsewhere one with all as `references`.

    Without captions (test sets) the one record has no answer.
    """
    if split == "train":
        for number, text in captions:
            yield asked(number, pictures, prompt, text.strip(), caption_id=number, **meta)
        return
    references = [text.strip() for _, text in captions]
    first = references[0] if references else None
    yield asked(name, pictures, prompt, first, references=references or None, **meta)


def chosen(text: str, choices: Sequence[str]) -> int | None:
    """The index of the choice a generated text names: the text of a choice or its letter ("B", "(B)", "B. …")."""
    wanted = text.strip().rstrip(".").lower()
    plain = [choice.strip().rstrip(".").lower() for choice in choices]
    if wanted in plain:
        return plain.index(wanted)
    letter = re.match(r"\(?([A-J])(?:[).:,]|$)", text.strip())
    index = LETTERS.index(letter[1]) if letter else len(choices)
    return index if index < len(choices) else None


def most_common(answers: Sequence[str]) -> str:
    """The answer most annotators gave; of several the first."""
    return Counter(answers).most_common(1)[0][0]


def conversation(name: Any, messages: Sequence[Mapping[str, Any]], pictures: Sequence[Picture], **meta: Any) -> Record:
    """Chat messages of the hub's layouts as a record.

    `content` is text, in which `<image>` marks a picture, or a list of parts; fields of parts that are
    None are left out (`datasets` fills parts up with them). One picture without a mark comes first.

    Raises:
        MmdoraError: for a role other than system, user, assistant or a part of another type.
    """
    made = []
    for message in messages:
        content = message["content"]
        parts = _parts(content) if isinstance(content, str) else [_part(part) for part in content]
        made.append({"role": message["role"], "content": parts})
    marks = sum(part["type"] == "image" for message in made for part in message["content"])
    if not marks and len(pictures) == 1 and made:
        first = next((message for message in made if message["role"] != "system"), made[0])
        first["content"].insert(0, {"type": "image"})
    return {"id": str(name), "messages": made, "images": list(pictures), "meta": meta}


def _parts(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(text.split(PLACEHOLDER)):
        if index:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "image":
        return {"type": "image"}
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    raise MmdoraError(f"a part of the type {part['type']!r}; text and image are known")
