"""Checks that a written checkpoint is the trained model, by the tensors of both and by their logits.

The tensors tell rounding and error apart exactly (`tensor_parity`). They cannot show a checkpoint that loads into the
wrong places or computes something else. The logits show that: they then differ by far more than they do when every
weight changes by its own rounding.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import AutoConfig

from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.export.logits import Outputs, decided, distance, move_weights, nudged_inputs, outputs_of
from mmdora.export.merge_disk import DiskMerge
from mmdora.export.tensor_parity import TensorParity, TrainedModel, tensor_parity
from mmdora.families import Prompt, ask
from mmdora.models.base import model_class
from mmdora.models.dtypes import DTYPES
from mmdora.models.load import load_processor, no_bars
from mmdora.records.features import open_features
from mmdora.records.images import open_image
from mmdora.records.reader import read_records
from mmdora.records.row import Row, videos_of
from mmdora.records.videos import open_video

ROWS = 8
"""Rows of data whose logits are compared."""
WITHIN = 8
"""The most that the logits may differ, as a multiple of the difference that rounding alone makes in this model. Correct
merges stay below 3 (tests/export)."""


QUESTIONS = (
    *("What is the capital of France?", "Write a sentence about rain.", "Is water wet? Answer yes or no."),
    *("Count from one to five.", "Name a colour.", "What comes after Monday?", "Why do birds sing?", "Say hello."),
)
"""What models without pictures are asked if there are no rows of data."""


@dataclass(frozen=True)
class Parity:
    """How far the written checkpoint is from the unmerged model, by logits at the text positions and by tensors.

    The files are loaded by stock transformers and run in fp32, so that the merge and its one rounding to `dtype` are
    measured, and not the arithmetic of a device. How far rounding alone changes the logits depends on the model, so it
    is measured too: `own`.
    """

    max_rel: float  # max|a - b| / max|b| of the logits, in the worst row
    own: float  # the same for each model and its copy with changes as small as rounding, summed over both models
    top1: float  # share of positions with the same best token, where `dtype` can tell the best two apart
    rows: int
    dtype: str
    tensors: TensorParity
    same_text: float | None = None  # share of rows with the same greedy answer; asked for in fp32 only
    source: str = "given rows"

    kind = "logits"
    how = "The files were loaded by stock transformers, every number compared with the equations in float64, and their"
    how += " logits with those of the unmerged model"

    def check(self) -> None:
        """Raise an MmdoraError if tensors or logits differ by more than rounding, as NaN always does.

        Ties within rounding change single greedy answers, but a model that generates in another way changes most of
        them, so half of the answers have to be equal.
        """
        self.tensors.check()
        if not self.max_rel <= WITHIN * self.own or (self.same_text is not None and self.same_text < 0.5):
            raise MmdoraError(f"the merged model is not the trained one; nothing was exported: {self}")

    def __str__(self) -> str:
        same = self.same_text
        text = (
            "" if same is None else ", same greedy text" if same == 1 else f", same greedy text in {same:.0%} of rows"
        )
        return (
            f"{self.dtype} on {self.rows} rows ({self.source}): logits differ by max-rel {self.max_rel:.1e}, at most "
            f"{WITHIN} times the model's own rounding of {self.own:.1e}, top-1 agreement {self.top1:.1%}{text}; "
            f"{self.tensors}"
        )


class LogitCheck:
    """The logits of the unmerged model for some conversations, kept for the comparison with a written checkpoint.

    Attributes:
        asked: the conversations.

    Args:
        model: unmerged, fp32; it is not kept.
        origin: where the conversations come from, in words for the report.
        trained: the tensors that were trained, from a merge from disk or from the model.
        dtype: dtype of the checkpoint to be written. In fp32 greedy answers are compared too.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        asked: list[Prompt],
        origin: str,
        trained: DiskMerge | TrainedModel,
        dtype: str,
    ):
        self.asked, self._origin, self._trained, self._dtype = asked, origin, trained, dtype
        self._reference = outputs_of(model, processor, asked, text=dtype == "fp32")
        with nudged_inputs(model):
            self._own = distance(outputs_of(model, processor, asked, text=False), self._reference)

    def compare(self, folder: Path) -> Parity:
        """The parity of the checkpoint in `folder`, as stock transformers loads it.

        Raises:
            MmdoraError: if a tensor does not load, or the processor gives other token ids than the base's.
        """
        if isinstance(self._trained, DiskMerge):
            tensors = tensor_parity(self._trained, folder)
            model, processor = _reload(folder)
        else:
            model, processor = _reload(folder)
            tensors = self._trained.parity(model, self._dtype)
        written = outputs_of(model, processor, self.asked, text=self._dtype == "fp32")
        move_weights(model, DTYPES[self._dtype])
        own = self._own + distance(outputs_of(model, processor, self.asked, text=False), written)
        return _compare(self._reference, written, own, tensors, self._origin)


def prompts(config: RunConfig | None, rows: Sequence[Row] | None, *, sees: bool = True) -> tuple[list[Prompt], str]:
    """Conversations with their images, and where they come from.

    Args:
        sees: whether the model reads pictures.
    """
    if rows is not None:
        if not rows:
            raise MmdoraError("rows: no records to compare on; give at least one")
        return _prompts(rows), "given rows"
    files = list(_files(config))
    if not files:
        if not sees:
            return [ask(question) for question in QUESTIONS], "questions without a picture"
        return [_drawn(i) for i in range(ROWS)], "drawn pictures"
    conversations, share = [], -(-ROWS // len(files))  # `share` is the number of rows of each task.
    for path, images in files:
        records = read_records(path, images)
        conversations += _prompts([records[i] for i in range(min(share, len(records)))])
    return conversations, f"of {', '.join(str(path) for path, _ in files)}"


def _files(config: RunConfig | None) -> Iterator[tuple[Path, Path | None]]:
    """Yield one file of records of each task, with the root of its images.

    Held-out records are preferred to those that were trained on; files that do not exist are left out.
    """
    if config is None:
        return
    for source in config.data.sources.values():
        choice = (source.eval, None if config.data.stream else source.train)
        if path := next((path for path in choice if path and path.is_file()), None):
            yield path, source.images


def _prompts(rows: Sequence[Row]) -> list[Prompt]:
    prompts = []
    for row in rows:
        clip = None if row["features"] is None else open_features(row["features"])
        images, videos = [open_image(image) for image in row["images"]], [open_video(video) for video in videos_of(row)]
        prompts.append(Prompt(row["messages"], images, clip, videos))
    return prompts


def _drawn(number: int) -> Prompt:
    """A picture of coloured boxes and a question about it, the same on every machine."""
    image = Image.new("RGB", (96, 96), (20 + 25 * number, 200 - 20 * number, 120))
    ImageDraw.Draw(image).rectangle((10 + 4 * number, 20, 60, 50 + 5 * number), (230 - 25 * number, 30 * number, 60))
    question = ("What is in the picture?", "What colour is the box?")[number % 2]
    return Prompt([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}], [image])


def _reload(folder: Path) -> tuple[Any, Any]:
    """Load the written checkpoint by stock transformers.

    Raises:
        MmdoraError: if a tensor is missing, unexpected or of another shape.
    """
    options: Any = {"dtype": torch.float32, "output_loading_info": True}
    with no_bars():
        opened: Any = model_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder, **options)
    model, info = opened
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            first = ", ".join(map(str, sorted(info[kind])[:5]))
            raise MmdoraError(f"the written checkpoint does not load: {kind.replace('_', ' ')} {first}")
    return model.eval(), load_processor(str(folder))


def _compare(reference: Outputs, written: Outputs, own: float, tensors: TensorParity, source: str) -> Parity:
    if not all(torch.equal(a, b) for a, b in zip(reference.ids, written.ids, strict=True)):
        raise MmdoraError("the written processor gives other token ids than the base's")
    pairs, dtype = list(zip(written.logits, reference.logits, strict=True)), tensors.dtype
    same = torch.cat([(a.argmax(-1) == b.argmax(-1))[decided(b, DTYPES[dtype])] for a, b in pairs])
    text = None
    if reference.texts is not None and written.texts is not None:
        text = statistics.mean(a == b for a, b in zip(reference.texts, written.texts, strict=True))
    worst = distance(written, reference)
    return Parity(worst, own, float(same.float().mean()), len(pairs), dtype, tensors, text, source)
