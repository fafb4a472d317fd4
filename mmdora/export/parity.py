"""Whether a written checkpoint is the trained model: by the logits of both, or tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmdora.config import RunConfig
from mmdora.dtypes import DTYPES, FLOATS
from mmdora.errors import MmdoraError
from mmdora.export.mapped import MappedCheckpoint
from mmdora.export.merge_disk import DiskMerge
from mmdora.export.shards import UnsureError
from mmdora.families import Prompt, family_of
from mmdora.models.load import no_bars
from mmdora.predict.answers import generate
from mmdora.records.features import open_features
from mmdora.records.images import open_image
from mmdora.records.reader import read_records
from mmdora.records.row import Row
from mmdora.records.turns import prompt_messages

MAX_REL: dict[str, float] = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 2e-2}
TOP1 = 0.97
BEYOND = 1e-5
ROWS = 8
"""Rows of data whose logits are compared."""
TENSOR_ROWS = 16
"""Rows of each tensor that are compared."""


@dataclass(frozen=True)
class Parity:
    """How far the written checkpoint is from the unmerged model, at the text positions of some rows.

    The files are loaded by stock transformers and run in fp32, so that what is measured is the merge
    and the one rounding to `dtype`, not the arithmetic of a device.
    """

    max_rel: float  # max|a - b| / max|b| of the logits, in the worst row
    top1: float  # share of positions with the same best token, where `dtype` can tell the best two apart
    rows: int
    dtype: str
    same_text: bool | None = None  # greedy answers equal; asked for in fp32 only
    source: str = "given rows"

    kind = "logits"
    how = "The files were loaded by stock transformers and their logits compared with those of the unmerged model"

    def check(self) -> None:
        """Raise `MmdoraError` if a bound does not hold (NaN never does)."""
        if not (self.max_rel <= MAX_REL[self.dtype] and self.top1 >= TOP1 and self.same_text is not False):
            raise MmdoraError(f"the merged model is not the trained one; nothing was exported: {self}")

    def __str__(self) -> str:
        text = {None: "", True: ", same greedy text", False: ", other greedy text"}[self.same_text]
        return (
            f"{self.dtype} on {self.rows} rows ({self.source}): max-rel {self.max_rel:.1e} "
            f"(at most {MAX_REL[self.dtype]:.0e}), top-1 agreement {self.top1:.1%} (at least {TOP1:.0%}){text}"
        )


@dataclass(frozen=True)
class TensorParity:
    """How far the written tensors are from the equations in float64, in some rows of every one of them."""

    beyond: float  # max over rows of (max|a - b|, less half a step of `dtype` at b) / max|b|
    max_rel: float  # max over tensors of max|a - b| / max|b|
    tensors: int
    merged: int  # of them by adapters
    dtype: str

    kind = "tensors"
    how = "The files were read back, their names and shapes checked against the model's, and rows of every tensor"
    how += " compared with the equations in float64"

    def check(self) -> None:
        """Raise `MmdoraError` if the bound does not hold (NaN never does)."""
        if not self.beyond <= BEYOND:
            raise MmdoraError(f"the merged tensors are not the trained ones; nothing was exported: {self}")

    def __str__(self) -> str:
        return (
            f"{self.dtype}, tensor by tensor (no logits): {self.tensors} tensors, {self.merged} of them merged, "
            f"{TENSOR_ROWS} rows of each against the equations in float64: max-rel {self.max_rel:.1e}, "
            f"beyond one rounding {self.beyond:.1e} (at most {BEYOND:.0e})"
        )


# --- tensor by tensor


def tensor_parity(merge: DiskMerge, folder: Path) -> TensorParity:
    """Read back what `merge` wrote to `folder`.

    Raises:
        MmdoraError: if transformers would miss a tensor, not know one or find one of another shape.
    """
    try:
        written = MappedCheckpoint(folder)
    except UnsureError as reason:
        raise MmdoraError(f"the written checkpoint does not load: {reason}") from None
    beyond, worst = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for row in merge.rows.values():
        tensor = torch.atleast_1d(written.tensors[row.hub_name])
        if not len(tensor):
            continue
        rows = torch.linspace(0, len(tensor) - 1, TENSOR_ROWS, dtype=torch.float64).long().unique()
        got, want = tensor[rows].double(), merge.expected(row, rows)
        error, largest = (got - want).abs(), want.abs()
        worst = torch.maximum(worst, _relative(error.amax(), largest.amax()))
        if row.dtype_out in FLOATS:
            error = (error - _half_step(want, tensor.dtype)).clamp(min=0)
        last = (-1,) if error.ndim > 1 else ()
        beyond = torch.maximum(beyond, _relative(error.amax(last), largest.amax(last)).amax())
    return TensorParity(float(beyond), float(worst), len(merge.rows), len(merge.merged), merge.dtype)


def _relative(error: Tensor, size: Tensor) -> Tensor:
    return torch.where(error == 0, 0, error / size)


def _half_step(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance of neighbouring numbers of `dtype` at float64 `values`: what one rounding may change."""
    info = torch.finfo(dtype)
    # The power of two at or below |value|; frexp gives zero the exponent of a half.
    power = torch.exp2(torch.frexp(values).exponent.double() - 1).masked_fill(values == 0, 0)
    return power.clamp(min=info.smallest_normal).mul(info.eps / 2)


# --- by logits


class LogitCheck:
    """What the unmerged model says to some conversations, kept for the comparison with a written checkpoint.

    Args:
        model: unmerged, fp32; it is not kept.
        asked: conversations, and `origin`, where they come from, for the report.
        dtype: of the checkpoint to be written. In fp32 greedy answers are compared too.
    """

    def __init__(self, model: Any, processor: Any, asked: list[Prompt], origin: str, dtype: str):
        self._asked, self._origin, self._dtype = asked, origin, dtype
        self._reference = _outputs(model, processor, asked, text=dtype == "fp32")

    def compare(self, folder: Path) -> Parity:
        """The parity of the checkpoint in `folder`, as stock transformers loads it.

        Raises:
            MmdoraError: if it does not load whole, or its processor makes other token ids.
        """
        written = _outputs(*_reload(folder), self._asked, text=self._dtype == "fp32")
        return _compare(self._reference, written, self._dtype, self._origin)


@dataclass(frozen=True)
class _Outputs:
    logits: list[Tensor]  # per row [text positions, vocabulary], fp32 on the CPU
    ids: list[Tensor]  # per row [positions]
    texts: list[str] | None


def prompts(config: RunConfig | None, rows: Sequence[Row] | None) -> tuple[list[Prompt], str]:
    """Conversations with their images, and where they come from."""
    if rows is not None:
        if not rows:
            raise MmdoraError("rows: no records to compare on; give at least one")
        return _prompts(rows), "given rows"
    files = list(_files(config))
    if not files:
        return [_drawn(i) for i in range(ROWS)], "drawn pictures"
    found, share = [], -(-ROWS // len(files))  # of each task
    for path, images in files:
        records = read_records(path, images)
        found += _prompts([records[i] for i in range(min(share, len(records)))])
    return found, f"of {', '.join(str(path) for path, _ in files)}"


def _files(config: RunConfig | None) -> Iterator[tuple[Path, Path | None]]:
    """Records of each task that are there, held out ones rather than trained ones, and the root of their images."""
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
        prompts.append(Prompt(row["messages"], [open_image(image) for image in row["images"]], clip))
    return prompts


def _drawn(number: int) -> Prompt:
    """A picture of coloured boxes and a question about it, the same on every machine."""
    image = Image.new("RGB", (96, 96), (20 + 25 * number, 200 - 20 * number, 120))
    ImageDraw.Draw(image).rectangle((10 + 4 * number, 20, 60, 50 + 5 * number), (230 - 25 * number, 30 * number, 60))
    question = ("What is in the picture?", "What colour is the box?")[number % 2]
    return Prompt([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}], [image])


@torch.inference_mode()
def _outputs(model: Any, processor: Any, asked: list[Prompt], *, text: bool) -> _Outputs:
    """Logits one row at a time (no padding, little memory); greedy answers if `text`."""
    logits, ids = [], []
    family = family_of(processor)
    for prompt in asked:
        inputs = family.encode_conversation(prompt).to(model.device)
        found = inputs["input_ids"][0]
        seen = found != getattr(processor, "image_token_id", -1)
        logits.append(model(**inputs, use_cache=False).logits[0, seen].float().cpu())
        ids.append(found.cpu())
    questions = [Prompt(_question(prompt), prompt.images, prompt.features) for prompt in asked]
    texts = generate(model, processor, questions, max_new_tokens=16, batch_size=1) if text else None
    return _Outputs(logits, ids, texts)


def _question(prompt: Prompt) -> list[dict[str, Any]]:
    asks = prompt.messages[-1]["role"] != "assistant"
    return prompt.messages if asks else prompt_messages({"messages": prompt.messages})


def _reload(folder: Path) -> tuple[Any, Any]:
    """The written checkpoint, by stock transformers.

    Raises:
        MmdoraError: if a tensor is missing, unexpected or of another shape.
    """
    options: Any = {"dtype": torch.float32, "output_loading_info": True}
    with no_bars():
        opened: Any = AutoModelForImageTextToText.from_pretrained(folder, **options)
    model, info = opened
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            first = ", ".join(map(str, sorted(info[kind])[:5]))
            raise MmdoraError(f"the written checkpoint does not load: {kind.replace('_', ' ')} {first}")
    return model.eval(), AutoProcessor.from_pretrained(folder)


def _compare(reference: _Outputs, written: _Outputs, dtype: str, source: str) -> Parity:
    if not all(torch.equal(a, b) for a, b in zip(reference.ids, written.ids, strict=True)):
        raise MmdoraError("the written processor gives other token ids than the base's")
    pairs = list(zip(written.logits, reference.logits, strict=True))
    same = torch.cat([(a.argmax(-1) == b.argmax(-1))[_decided(b, DTYPES[dtype])] for a, b in pairs])
    worst = torch.stack([(a - b).abs().max() / b.abs().max() for a, b in pairs]).max()
    text = None if reference.texts is None else reference.texts == written.texts
    return Parity(float(worst), float(same.float().mean()), len(pairs), dtype, text, source)


def _decided(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Positions [P] of logits [P, V] whose best two tokens are not a tie once rounded to `dtype`."""
    best = logits.topk(2, dim=-1).values
    return best[:, 0] - best[:, 1] > torch.finfo(dtype).eps * best[:, 0].abs()
