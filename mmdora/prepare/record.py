"""Makes records from the parts that official rows have: questions, choices, captions, conversations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from mmdora.errors import MmdoraError
from mmdora.records.llava_json import place_unmarked, text_parts
from mmdora.records.record import ImagePart, Message, Part, VideoPart

LETTERS = "ABCDEFGHIJ"
"""The letters of the options of a multiple-choice question; none of the datasets here has more than ten."""
Picture = str | tuple[str, ...] | bytes
"""A path below the folder of images; or several, of which the first that exists is meant; or the file's content."""


class RecordDraft(TypedDict):
    """A record before its files were looked for; `convert` makes a `records.record.Record` of it.

    Attributes:
        id, messages, meta: as in a record.
        videos: paths below the folder of images, for the video parts.
        images: a `Picture` for each image part. (The type says `Any`, so that a draft may be used as a record where
            all of them are single paths.)
        split: where the row itself tells its split.
        features: the paths below the folder of features that the video's file may have; see `feature_files`.
    """

    id: str
    messages: list[Message]
    images: list[Any]
    videos: NotRequired[list[str]]
    meta: dict[str, Any]
    split: NotRequired[str]
    features: NotRequired[tuple[str, ...]]


def feature_files(video: str) -> tuple[str, ...]:
    """The files that may hold a video's features."""
    return f"{video}.npz", f"{video}.npy"


def asked(name: Any, pictures: Sequence[Picture], question: str, answer: str | None, /, **meta: Any) -> RecordDraft:
    """A question, which its pictures precede, and its answer.

    Args:
        name: the official id; `record["id"]` is its text.
        answer: None if the official file holds none, as those of test sets do; the last message is then empty.
        meta: official ids and fields that a score or a result file needs; those that are None are left out.

    Raises:
        MmdoraError: question or answer is not text.
    """
    for field, text in (("question", question), ("answer", answer or "")):
        if not isinstance(text, str):
            raise MmdoraError(f"{field} must be text, not {type(text).__name__}")
    marks: list[ImagePart] = [{"type": "image"} for _ in pictures]
    reply: list[Part] = [] if answer is None else [{"type": "text", "text": answer}]
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
) -> RecordDraft:
    """A multiple-choice question with its options under letters, as LLaVA-1.5's evaluation writes them.

    The answer is a letter. `meta` gains `question`, `choices` and, if it is known, `answer`, an index of `choices`.

    Args:
        right: index of the right choice; None if it is not known.
        context: text that comes before the question.

    Raises:
        MmdoraError: there are not 2 to 10 choices, or `right` is none of them; or as `asked`.
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
) -> Iterator[RecordDraft]:
    """The captions of one image or clip.

    In the split `train` each is a record of its own. Elsewhere there is one record, whose answer is the first caption
    and whose `meta.references` are all of them; without captions, as in test sets, it has no answer.

    Args:
        name: the id of the image or clip.
        captions: (id, text) of each.
    """
    if split == "train":
        for number, text in captions:
            yield asked(number, pictures, prompt, text.strip(), caption_id=number, **meta)
        return
    references = [text.strip() for _, text in captions]
    first = references[0] if references else None
    yield asked(name, pictures, prompt, first, references=references or None, **meta)


def chosen(text: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that a generated text names, or None.

    The text is that of a choice, in any case, or begins with its letter ("B", "(B)", "B. …").
    """
    wanted = text.strip().rstrip(".").lower()
    plain = [choice.strip().rstrip(".").lower() for choice in choices]
    if wanted in plain:
        return plain.index(wanted)
    letter = re.match(r"\(?([A-J])(?:[).:,]|$)", text.strip())
    index = LETTERS.index(letter[1]) if letter else len(choices)
    return index if index < len(choices) else None


def most_common(answers: Sequence[str]) -> str:
    """The answer that most annotators gave; of several such answers the first."""
    return Counter(answers).most_common(1)[0][0]


def conversation(
    name: Any, messages: Sequence[Mapping[str, Any]], pictures: Sequence[Picture], videos: Sequence[str] = ()
) -> RecordDraft:
    """Chat messages of the hub's layouts as a record, with the name as `meta.id`.

    `content` is text, in which `<image>` marks a picture and `<video>` a video, or a list of parts. A video part may
    hold its path, as `video` or `path`, in place of one in `videos`. Fields of parts that are None are left out, since
    `datasets` adds them to make all parts alike. If there is one picture, or one video, and no mark, it comes first in
    the first message of the user.

    Raises:
        MmdoraError: for a role other than system, user, assistant or a part of another type; or if some videos stand in
            parts and others do not.
    """
    made: list[Message] = []
    within: list[str] = []
    for message in messages:
        content = message["content"]
        parts = text_parts(content) if isinstance(content, str) else [_part(part, within) for part in content]
        made.append({"role": message["role"], "content": parts})
    if within and videos:
        raise MmdoraError("names videos in its parts and beside its messages; give all in one way")
    place_unmarked(made, len(pictures))
    place_unmarked(made, len(videos), "video")
    draft: RecordDraft = {"id": str(name), "messages": made, "images": list(pictures), "meta": {"id": name}}
    return {**draft, "videos": within or list(videos)} if within or videos else draft


def _part(part: Mapping[str, Any], videos: list[str]) -> Part:
    """A part as records have it; the path of a video that it names is added to `videos`."""
    if part["type"] == "image":
        return {"type": "image"}
    if part["type"] == "video":
        named = part.get("video") or part.get("path")
        if named is not None:
            videos.append(named)
        made: VideoPart = {"type": "video"}
        if part.get("frames") is not None:
            made["frames"] = part["frames"]
        if part.get("fps") is not None:
            made["fps"] = part["fps"]
        return made
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    raise MmdoraError(f"a part of the type {part['type']!r}; text, image and video are known")
