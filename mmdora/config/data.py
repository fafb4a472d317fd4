"""Section `data`: records and how they become batches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, model_validator
from pydantic.dataclasses import dataclass

from mmdora.config.values import Positive, strict

BOX_FORMS = ("pixels", "relative")
BOX_STYLES = ("pixels", "thousand", "qwen2", "internvl", "loc", "square", "shares")
"""The ways to write a box of `families/boxes.py`."""


@dataclass(frozen=True, kw_only=True, config=strict)
class ImageTokens:
    """How many tokens an image may take; default: what the base's processor gives."""

    min: Annotated[Positive | None, Field(description="the fewest tokens of an image")] = None
    max: Annotated[Positive | None, Field(description="the most tokens of an image")] = None

    @model_validator(mode="after")
    def _in_order(self) -> ImageTokens:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


@dataclass(frozen=True, kw_only=True, config=strict)
class TaskData:
    """One of several tasks that are learned together."""

    train: Annotated[Path, Field(description="its records")]
    eval: Annotated[Path | None, Field(description="its held-out records")] = None
    images: Annotated[
        Path | None, Field(description="root of its image paths; default: the card's, or the records' folder")
    ] = None
    eval_task: Annotated[str, Field(description="how its answers are scored: a task of mmdora eval --list")] = "exact"
    soft_answers: Annotated[
        StrictBool,
        Field(description="learn one of meta.answers, drawn by their scores, its loss times that score (VQA)"),
    ] = False


@dataclass(frozen=True, kw_only=True, config=strict)
class Data:
    """Records (JSONL: messages + images) and how they become batches."""

    train: Annotated[
        Path | None, Field(description="records to train on: JSONL, Parquet (prep --pack), or LLaVA's .json")
    ] = None
    eval: Annotated[Path | None, Field(description="records for the loss during training")] = None
    eval_rows: Annotated[Positive | None, Field(description="use only the first N of eval")] = None
    eval_generate_rows: Annotated[
        Positive | None,
        Field(description="also answer the first N of eval; their score chooses the best instead of the loss"),
    ] = None
    eval_task: Annotated[str, Field(description="how those answers are scored: a task of mmdora eval --list")] = "exact"
    images: Annotated[
        Path | None, Field(description="root of image paths; default: the card's, or the records' folder")
    ] = None
    tasks: Annotated[
        dict[str, TaskData] | None,
        Field(
            description="name: {train, eval, images, eval_task, soft_answers}; several tasks instead of train and eval,"
            " a batch holds one, in proportion to their rows; for VL-BART the name is that of its prompt"
        ),
    ] = None
    max_turns: Annotated[
        Positive | None, Field(description="rows with more turns become several rows, all with the images")
    ] = None
    max_length: Annotated[Positive | None, Field(description="tokens per row, images included")] = None
    too_long: Annotated[
        Literal["error", "drop", "shrink"],
        Field(description="rows over max_length; shrink leaves out turns from the end, never an image"),
    ] = "error"
    image_tokens: ImageTokens = ImageTokens()
    template: Annotated[
        Path | None, Field(description="Jinja file to write conversations by, in place of the base's chat template")
    ] = None
    thoughts: Annotated[
        StrictBool,
        Field(description="learn the thoughts <think> … </think> that answers begin with, and ask for them; off: none"),
    ] = False
    boxes: Annotated[
        dict[Literal["from", "to"], str] | None,
        Field(
            description="what <box>x1, y1, x2, y2</box> in texts is: {from: pixels | relative, to: the family's own"
            " way by default}; follows the picture's resizing"
        ),
    ] = None
    stream: Annotated[
        StrictBool,
        Field(
            description="read train in turn and copy nothing, for data that fit no disk: a file, a folder, a pattern,"
            " or those at hf:// or https://; needs training.steps"
        ),
    ] = False
    shuffle_buffer: Annotated[
        Positive | None, Field(description="rows of a stream shuffled together; default 1000")
    ] = None
    group_by_length: Annotated[
        StrictBool, Field(description="batches of like length and modality; false with stream")
    ] = True
    packing: Annotated[
        StrictBool,
        Field(description="several rows in one of up to max_length tokens; batch_size then counts packed rows"),
    ] = False
    feature_cache: Annotated[
        Path | None,
        Field(description="folder for what a frozen tower gives, so that it runs once per image (VL-BART)"),
    ] = None
    workers: Annotated[StrictInt, Field(ge=0, le=256, description="loader processes")] = 0

    @model_validator(mode="before")
    @classmethod
    def _stream_is_not_sorted(cls, values: Any) -> Any:
        kwargs = getattr(values, "kwargs", values)
        if isinstance(kwargs, dict) and kwargs.get("stream") is True:
            kwargs.setdefault("group_by_length", False)
        return values

    @model_validator(mode="after")
    def _stream_knows_no_lengths(self) -> Data:
        for key in ("packing", "group_by_length") if self.stream else ():
            if getattr(self, key):
                raise ValueError(f"{key} needs the lengths of all rows, which a stream does not know; leave it out")
        if self.shuffle_buffer is not None and not self.stream:
            raise ValueError("shuffle_buffer is for stream: true; without it all rows are shuffled")
        return self

    @model_validator(mode="after")
    def _tasks_have_the_data(self) -> Data:
        if self.tasks is None:
            return self
        if not self.tasks:
            raise ValueError("tasks is empty; name one, or use train")
        for name in self.tasks:
            if not name.isidentifier():
                raise ValueError(f"tasks: the name {name!r} must consist of letters, digits and _")
        for key in ("train", "eval", "images", "stream", "packing"):
            if getattr(self, key):
                raise ValueError(f"{key} is not for several tasks (each of data.tasks has its own files); leave it out")
        if self.eval_task != "exact":
            raise ValueError("eval_task belongs to each of data.tasks")
        return self

    @model_validator(mode="after")
    def _boxes_are_known(self) -> Data:
        known = {"from": BOX_FORMS, "to": BOX_STYLES}
        for key, value in (self.boxes or {}).items():
            if value not in known[key]:
                raise ValueError(f"boxes: {key}: {value!r} is none of {', '.join(known[key])}")
        return self

    @property
    def sources(self) -> dict[str, TaskData]:
        """Where the records are, by task; one without a name where there are no tasks, none without records."""
        if self.tasks is not None:
            return dict(self.tasks)
        if self.train is None:
            return {}
        return {"": TaskData(train=self.train, eval=self.eval, images=self.images, eval_task=self.eval_task)}

    @property
    def evaluates(self) -> bool:
        """Whether there are held-out records."""
        return any(source.eval for source in self.tasks.values()) if self.tasks else self.eval is not None

    @model_validator(mode="after")
    def _packing_has_a_limit(self) -> Data:
        if self.packing and self.max_length is None:
            raise ValueError("packing needs max_length, the tokens of a packed row")
        return self
