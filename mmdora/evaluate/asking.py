"""Turns records into prompts worded for their task, in batches of similar length; pictures are opened ahead."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.evaluate.tasks import Task
from mmdora.families import Prompt, family_of
from mmdora.files import ordinary, sha256
from mmdora.predict.likelihood import Continuation
from mmdora.records.features import open_features
from mmdora.records.images import FileRef, image_bytes, open_image
from mmdora.records.reader import Records
from mmdora.records.row import Row, naming, videos_of
from mmdora.records.turns import Messages, prompt_messages
from mmdora.records.videos import VideoRef, digest, open_video

WINDOW = 16
"""Batches whose rows are sorted by length together: enough that little is padded. A batch opens a shared image once."""
ALIKE = 32
"""Lengths are rounded down to a multiple of so many characters (about 8 tokens), so that questions about one picture
can be asked together. With a larger value, padding would cost more time than that saves."""
IMAGE_LENGTH = 10_000
"""Characters that an image counts as. No question is that long, so rows with equally many images come together."""


def plan(lengths: Sequence[int], pictures: Sequence[Hashable], batch_size: int) -> list[list[int]]:
    """Plan the batches, as lists of row numbers.

    Within `WINDOW` batches the longest rows come first, and among rows of similar length those about the same picture
    come together.

    Args:
        lengths: length of each row in characters; lengths within `ALIKE` count as similar.
        pictures: the pictures that each row asks about; equal values mean the same pictures.
    """
    batches = []
    for start in range(0, len(lengths), batch_size * WINDOW):
        window = range(start, min(start + batch_size * WINDOW, len(lengths)))
        number = {picture: place for place, picture in enumerate(dict.fromkeys(pictures[row] for row in window))}
        ordered = sorted(window, key=lambda row: (-(lengths[row] // ALIKE), number[pictures[row]], -lengths[row]))
        batches += [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    return batches


class Asking:
    """Makes prompts of records, in the wording of the task and the model's family."""

    def __init__(self, processor: Any, task: Task):
        self.task, self.family = task, family_of(processor)
        self.answers = self.family.choices(task.answers)
        if task.options is not None and not self.family.one_stream:
            raise MmdoraError(f"task {task.name}: a model with an encoder gives no likelihood of a continuation here")

    def messages(self, row: Row) -> Messages:
        """The conversation with its last question worded for the task."""
        return self.family.asked(prompt_messages(row), self.task.prefix, partial(self.task.ask, row))

    def continuations(self, row: Row, prompt: Prompt) -> list[Continuation]:
        """The options of a row, each behind its text; for tasks that are answered by likelihood."""
        assert self.task.options is not None
        if prompt.videos:
            raise MmdoraError(f"task {self.task.name} asks for likelihoods, which are not computed of a video here")
        rendered = self.family.render(prompt.messages, generation_prompt=True)
        return [
            (rendered, option, prompt.images) if before is None else (before, option, [])
            for before, option in self.task.options(row)
        ]

    def prompts(
        self, records: Records | Sequence[Row], batches: list[list[int]], numbers: list[int]
    ) -> Iterator[tuple[int, list[Prompt]]]:
        """Yield each batch's number and prompts. While it is being answered, the images of the next one are opened."""
        opened: dict[FileRef, Image.Image] = {}
        window = -1

        def load(number: int) -> tuple[int, list[Prompt]]:
            nonlocal window
            if number // WINDOW != window:
                window = number // WINDOW
                opened.clear()
            return number, [self._prompt(records[row], opened) for row in batches[number]]

        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(load, number) for number in numbers[:1]]
            for following in [*numbers[1:], None]:
                if not coming:
                    return
                now = coming.pop().result()
                if following is not None:
                    coming.append(ahead.submit(load, following))
                yield now

    def _prompt(self, row: Row, opened: dict[FileRef, Image.Image]) -> Prompt:
        with naming(row):
            self.family.check_question(row)
            messages = self.messages(row)
            self.family.check_pictures(messages, len(row["images"]))
            for image in row["images"]:
                if image not in opened:
                    opened[image] = open_image(image)
            features = None if row["features"] is None else open_features(row["features"])
            videos = [open_video(video) for video in videos_of(row)]
        return Prompt(messages, [opened[image] for image in row["images"]], features, videos)


@dataclass(frozen=True)
class Questions:
    """Facts about the questions from one pass over the records, before the first batch."""

    lengths: list[int]  # length of each record in characters, in which an image counts as `IMAGE_LENGTH`
    pictures: list[int]  # a number for each record, which is equal for records with the same images
    digest: str  # hash of ids, conversations, and images by name and content
    answered: bool  # whether the records hold answers
    earlier: int  # how many answers come before the last ones; they are part of the prompts


def survey(records: Records | Sequence[Row], asking: Asking, *, contents: bool = True) -> Questions:
    """Collect the facts about the questions from every record.

    Args:
        contents: whether the digest covers the contents of pictures, videos and features, each of which is then read.

    Raises:
        MmdoraError: if some have an answer and some have none, a question cannot be worded for the task, or a picture
            cannot be read.
    """
    picture_of = lru_cache(maxsize=None)(lambda image: sha256(image_bytes(image)[0]))
    lengths, pictures, answers, earlier, whole = [], [], 0, 0, hashlib.sha256()
    seen: dict[tuple[FileRef | VideoRef, ...], int] = {}
    for record in records:
        messages = asking.messages(record)
        parts = [part for message in messages for part in message["content"]]
        lengths.append(sum(len(part["text"]) if part["type"] == "text" else IMAGE_LENGTH for part in parts))
        pictures.append(seen.setdefault((*record["images"], *videos_of(record)), len(seen)))
        answers += any(part["text"].strip() for part in record["messages"][-1]["content"])
        earlier += sum(message["role"] == "assistant" for message in record["messages"]) - 1
        with naming(record):
            shown = list(map(picture_of, record["images"])) if contents else []
            asking.family.check_videos(messages)
            shown += list(map(digest, videos_of(record))) if contents else []
            if contents and record["features"] is not None:
                shown.append(sha256(ordinary(record["features"].path, "file of features")))
        options = [] if asking.task.options is None else asking.task.options(record)
        whole.update(json.dumps([record["id"], messages, list(map(str, record["images"])), shown]).encode())
        whole.update(json.dumps(options).encode() if options else b"")
    if 0 < answers < len(lengths):
        raise MmdoraError(f"{len(lengths) - answers:,} of {len(lengths):,} records have no answer to be scored by")
    return Questions(lengths, pictures, whole.hexdigest(), answers > 0, earlier)
