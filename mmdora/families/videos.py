"""Videos as a family's processor reads them: frames in, and text with a place for every frame.

Every processor of transformers that takes videos does so in one way: `videos` with `video_metadata`, a token that marks
a video in the text, and `replace_video_token`, which writes what stands in its place. Each row is read by itself here,
because some processors write a row by the longest video of its batch (SmolVLM), cannot stack videos of different
lengths (InternVL), or lose the pictures of a batch that has videos too (SmolVLM).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata

from mmdora.errors import MmdoraError
from mmdora.families.template import PLACES, encode
from mmdora.records.videos import Sampling, Video

ALONG_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Inputs [rows, tokens]. What is none of them holds pictures, and is put together along its first dimension."""
FRAMED = "pixel_values_videos"
"""The input in which some models take videos of equally many frames only, [videos, frames, 3, height, width]."""


class Videos:
    """How a processor writes videos.

    Attributes:
        placeholder: the text that marks the place of a video.
        id: the token of a video's features.
        timed: whether the processor writes times, so that it must know how many frames a second has.
    """

    def __init__(self, processor: Any):
        self.processor = processor
        self.placeholder = str(processor.video_token)
        self.id: int | None = getattr(processor, "video_token_id", None)
        self.timed = bool(getattr(processor, "videos_kwargs", {}).get("return_metadata"))
        self._kept: dict[tuple[int, int, int], dict[str, Any]] = {}

    @classmethod
    def of(cls, processor: Any) -> Videos | None:
        """None if the processor takes no videos."""
        takes = getattr(processor, "video_processor", None) is not None and getattr(processor, "video_token", None)
        return cls(processor) if takes else None

    # --- lengths in tokens

    def written(self, sampling: Sampling) -> str:
        """What the processor writes in place of a video.

        It is asked with a black video, once for each number and size of frames; the times are written anew.

        Raises:
            MmdoraError: the processor cannot read such a video, or needs times that nothing tells.
        """
        self.check(sampling)
        shape = len(sampling.indices), sampling.height, sampling.width
        try:
            if shape not in self._kept:
                self._kept[shape] = self._asked(sampling)
            given = self._kept[shape] | {"video_metadata": [VideoMetadata(**sampling.metadata())]}
            return self.processor.replace_video_token(given, video_idx=0)
        except Exception as error:  # It is the processor's own code, of a form that is not known here.
            raise self._unreadable(error) from None

    def into(self, text: str, samplings: Sequence[Sampling]) -> str:
        """A rendered conversation with what is written in place of its videos."""
        first, *parts = text.split(self.placeholder)
        return first + "".join(self.written(each) + part for each, part in zip(samplings, parts, strict=True))

    def check(self, sampling: Sampling) -> None:
        """Raise an MmdoraError if the processor writes times, and the video does not tell its frames per second."""
        if self.timed and sampling.fps is None:
            raise MmdoraError(
                f"{type(self.processor).__name__} tells the model at what time each frame was, and a folder does not "
                'say it: write the frames per second into the part, {"type": "video", "fps": …}'
            )

    def _asked(self, sampling: Sampling) -> dict[str, Any]:
        """The outputs of the video processor for a black video, with the shapes of pixels in place of pixels."""
        blank = np.zeros((len(sampling.indices), sampling.height, sampling.width, 3), np.uint8)
        outputs = self.processor.video_processor(
            [blank], video_metadata=[sampling.metadata()], do_sample_frames=False, return_tensors="pt"
        )
        return {
            name: value.new_empty(1).expand(value.shape) if name.startswith("pixel_values") else value
            for name, value in outputs.items()
        }

    # --- batches

    def read(
        self,
        texts: Sequence[str],
        images: Sequence[list[Image.Image]],
        videos: Iterable[list[Video]],
        *,
        left: bool,
        offsets: bool = False,
    ) -> Any:
        """Texts, their pictures and videos as padded tensors; the arguments are those of `template.encode`.

        Raises:
            MmdoraError: the processor cannot read a video, or not in one batch with the others.
        """
        rows = []
        for text, own, shown in zip(texts, images, videos, strict=True):
            for video in shown:
                self.check(video.sampling)
            try:
                rows.append(encode(self.processor, [text], [own], left=left, offsets=offsets, videos=shown))
            except ValueError as error:
                raise self._unreadable(error) if shown else error from None
        return self._joined(rows, left)

    @cached_property
    def alike(self) -> bool:
        """Whether all videos of a batch must have equally many frames."""
        short, long = (
            Video(np.zeros((frames, 64, 64, 3), np.uint8), Sampling(frames, 64, 64, 1.0, tuple(range(frames))))
            for frames in (2, 4)
        )
        try:
            self.read([self.placeholder] * 2, [[], []], [[short], [long]], left=False)
        except MmdoraError:
            return True
        return False

    def _joined(self, rows: Sequence[Mapping[str, Any]], left: bool) -> Any:
        """The batch of rows that were read one by one."""
        width = max(row["input_ids"].shape[1] for row in rows)
        fill = {"input_ids": self.processor.tokenizer.pad_token_id}
        batch: dict[str, Any] = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row[name] for row in rows if name in row]
            if name == "offset_mapping":
                batch[name] = [_padded(each[0], width, left) for each in values]
            elif name in PLACES:
                batch[name] = [item for each in values for item in each]
            elif name in ALONG_TEXT:
                gaps = [width - value.shape[1] for value in values]
                sides = [(gap, 0) if left else (0, gap) for gap in gaps]
                batch[name] = torch.cat(
                    [pad(value, side, value=fill.get(name, 0)) for value, side in zip(values, sides, strict=True)]
                )
            else:
                batch[name] = _stacked(name, values)
        return BatchFeature(batch)

    def _unreadable(self, error: Exception) -> MmdoraError:
        reason = " ".join(str(error).split())[:200]
        return MmdoraError(f"{type(self.processor).__name__} cannot read the video: {reason}")


def _padded(places: Sequence[Any], width: int, left: bool) -> list[Any]:
    """The places of a row's tokens in its text, with empty ones for the padding."""
    empty = [(0, 0)] * (width - len(places))
    return [*empty, *places] if left else [*places, *empty]


def _stacked(name: str, values: Sequence[Tensor]) -> Tensor:
    """What rows have of pictures or videos, one after the other; smaller ones are filled up with zeros."""
    largest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    if name == FRAMED and any(list(value.shape[1:]) != largest for value in values):
        raise MmdoraError(
            f"the videos of one batch must have equally many frames for this model, and have "
            f"{' and '.join(sorted({str(value.shape[1]) for value in values}))}; give all the same 'frames'"
        )
    return torch.cat(
        [
            pad(
                value,
                [n for size, most in zip(value.shape[:0:-1], largest[::-1], strict=True) for n in (0, most - size)],
            )
            for value in values
        ]
    )
