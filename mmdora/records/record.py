"""A record: one conversation about pictures or videos. A file of records holds one a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

from mmdora.errors import MmdoraError
from mmdora.files import sha256
from mmdora.records.media import check_keys

KEYS = ("id", "messages", "images", "videos", "meta")
"""The keys of a record that are read."""
MAX_FRAMES = 768
"""The most frames of a video that a record may ask for: the most that Qwen's processors take by themselves."""

MAX_FPS = 100_000.0
"""The highest frame rate of a video: that of cameras for the fastest motions."""


class TextPart(TypedDict):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class ImagePart(TypedDict):
    """The place of a picture in a message; `Record.images` says which picture it is."""

    type: Literal["image"]


class VideoPart(TypedDict):
    """The place of a video in a message; `Record.videos` says which video it is.

    Attributes:
        frames: number of frames to show, evenly spaced; by default `videos.FRAMES`.
        fps: frames per second of the whole video, where its file does not say it, as a folder of frames does not.
    """

    type: Literal["video"]
    frames: NotRequired[int]
    fps: NotRequired[float]


Part = TextPart | ImagePart | VideoPart


class Message(TypedDict):
    """One message of a conversation. Answers (messages of the role `assistant`) hold text only."""

    role: Literal["system", "user", "assistant"]
    content: list[Part]


class RecordFacts(TypedDict):
    """The part of a record that result files need: its id and its `meta`. Records and rows both have it."""

    id: str
    meta: dict[str, Any]


class Record(TypedDict):
    """One conversation, with or without pictures, as it stands in a file of records.

    `check_record` checks that a value is a record. In a file `id` and `meta` may be missing; they are filled in when
    the file is read.

    Attributes:
        id: name of the record; result files of public datasets are keyed by it.
        messages: the conversation, with at least one answer. An empty last answer means that the answer is not known.
        images: paths relative to the folder of images that goes with the file, in the order of the image parts.
        videos: likewise, files or folders of frames, in the order of the video parts; left out where there are none.
        meta: other values that scores and result files need, under the dataset's own names. `type` is the kind of
            question, by which scores are grouped.
    """

    id: str
    messages: list[Message]
    images: list[str]
    videos: NotRequired[list[str]]
    meta: dict[str, Any]


def qa_record(name: str, image: str, pairs: list[tuple[str, str]]) -> Record:
    """Make a record of questions and answers about one picture; the picture stands in the first turn.

    `meta.type`, by which scores are grouped, is `yes/no` if the last answer is one of the two, else `other`.

    Args:
        name: the record's id.
        image: path of the picture.
        pairs: one (question, answer) for each turn; at least one.
    """
    messages: list[Message] = []
    for question, answer in pairs:
        picture: list[Part] = [] if messages else [{"type": "image"}]
        messages.append({"role": "user", "content": [*picture, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    kind = "yes/no" if pairs[-1][1] in ("yes", "no") else "other"
    return {"id": name, "messages": messages, "images": [image], "meta": {"type": kind}}


def content_of(record: Mapping[str, Any]) -> int:
    """A hash of 63 bits of messages and names of images and videos in a record or row; equal contents share it."""
    said = [record["messages"], [str(image) for image in record["images"]]]
    said += [[str(video) for video in record["videos"]]] if record.get("videos") else []
    return int(sha256(json.dumps(said, sort_keys=True).encode())[:16], 16) >> 1


def check_record(row: Any, where: str) -> Record:
    """Check that `row` is a record, and return it with `id` and `meta` filled in.

    The conversation may begin with one system message. Then user and assistant speak in turn, the user first. Only user
    messages may hold pictures or videos: templates do not agree on where pictures stand in other messages, and answers,
    which the model learns, are text.

    Raises:
        MmdoraError: if it is no record; the message says what is wrong and where.
    """
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        raise MmdoraError(f"{where}: a record needs a non-empty list 'messages'{_other_layout(row)}")
    check_keys(row, KEYS, ("images",), where, videos=("videos",))
    marks = [mark for message in row["messages"] for mark in _check_message(message, where)]
    _check_order([message["role"] for message in row["messages"]], where)
    images, videos = (_paths(row, kind, marks, where) for kind in ("image", "video"))
    name, meta = row.get("id", where), row.get("meta") or {}
    if not isinstance(name, (str, int)) or not isinstance(meta, dict):
        wrong = "'meta' must be an object" if isinstance(name, (str, int)) else "'id' must be a string or a number"
        raise MmdoraError(f"{where}: {wrong}")
    if not isinstance(meta.get("features", ""), str):
        raise MmdoraError(f"{where}: 'meta.features' must be the path of a file, not {type(meta['features']).__name__}")
    record: Record = {"id": str(name), "messages": row["messages"], "images": images, "meta": meta}
    return {**record, "videos": videos} if videos else record


def _paths(row: Mapping[str, Any], kind: str, marks: list[str], where: str) -> list[str]:
    """The paths of the pictures or videos of a row, as many as it has parts for."""
    paths, parts = row.get(f"{kind}s", []), marks.count(kind)
    if not isinstance(paths, list) or not all(isinstance(name, str) for name in paths):
        raise MmdoraError(f"{where}: '{kind}s' must be a list of paths")
    if parts != len(paths):
        raise MmdoraError(f"{where}: {parts} {kind} parts for {len(paths)} {kind}s")
    return paths


def _check_message(message: Any, where: str) -> list[str]:
    """Check a message and return the kinds of its pictures and videos."""
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
        raise MmdoraError(f"{where}: every message needs a role: system, user or assistant")
    role, parts = message["role"], message.get("content")
    marks: list[str] = []
    if not isinstance(parts, list):
        raise MmdoraError(f"{where}: 'content' must be a list of parts, not {type(parts).__name__}")
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            marks.append(kind)
        elif kind == "video":
            _check_video(part, where)
            marks.append(kind)
        elif kind != "text" or not isinstance(part.get("text"), str):
            raise MmdoraError(
                f"{where}: a part is {{type: image}}, {{type: video}} or {{type: text, text: a string}}; "
                f"found {part!r:.80}"
            )
    if marks and role == "assistant":
        raise MmdoraError(f"{where}: an answer (role assistant) cannot hold {_a(marks[0])}; text is what is learned")
    if marks and role == "system":
        raise MmdoraError(f"{where}: a system message cannot hold {_a(marks[0])}; put it into the first user message")
    return marks


def _a(kind: str) -> str:
    return "an image" if kind == "image" else "a video"


def _check_video(part: Mapping[str, Any], where: str) -> None:
    """Raise an MmdoraError unless the number of frames and the frame rate of a video part can be used."""
    frames, fps = part.get("frames", 1), part.get("fps", 1)
    if not isinstance(frames, int) or isinstance(frames, bool) or not 1 <= frames <= MAX_FRAMES:
        raise MmdoraError(f"{where}: a video part's 'frames' is {frames!r:.40}; give a number from 1 to {MAX_FRAMES}")
    if not isinstance(fps, (int, float)) or isinstance(fps, bool) or not 0 < fps <= MAX_FPS:
        raise MmdoraError(
            f"{where}: a video part's 'fps' is {fps!r:.40}; give the frames per second of the whole video, above 0"
        )


def _check_order(roles: list[str], where: str) -> None:
    """Raise an MmdoraError unless the roles are at most one system, and then user and assistant in turn."""
    if "assistant" not in roles:
        raise MmdoraError(f"{where}: no assistant message, so there is nothing to learn or to score")
    start = int(roles[0] == "system")
    for number, role in enumerate(roles[start:], start):
        if role == "system":
            raise MmdoraError(f"{where}: message {number} is a system message; there may be one, at the beginning")
        if role == ("user", "assistant")[(number - start) % 2]:
            continue
        if number == start:
            raise MmdoraError(
                f"{where}: an answer (role assistant) comes first; a conversation begins with a user message"
            )
        raise MmdoraError(
            f"{where}: messages {number - 1} and {number} both have the role {role}; user and assistant speak in turn, "
            "so join them into one"
        )


def _other_layout(row: Any) -> str:
    """A phrase that says what a row without messages seems to be, and which command reads it."""
    if isinstance(row, list):
        return ", found a JSON list; a file that holds a list in LLaVA's layout has the ending .json"
    if isinstance(row, dict) and "conversations" in row:
        return (
            "; it has 'conversations', as LLaVA's layout does: mmdora prep llava --in FILE makes records of it "
            "(mmdora prep sharegpt, if it has 'images')"
        )
    if isinstance(row, dict) and "question" in row:
        return "; it has 'question': mmdora prep folder --in FILE makes records of questions and answers"
    return ""
