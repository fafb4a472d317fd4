"""Checks a run before its model is loaded: whether its settings fit together, and whether its folder can be written."""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute
import torch

from mmdora.adapt.inject import make_plan
from mmdora.adapt.plan import Plan
from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.evaluate.tasks import task_of
from mmdora.families import family_of
from mmdora.files import sha256
from mmdora.models.base import skeleton_of
from mmdora.models.chat_template import template_of
from mmdora.models.dtypes import DTYPES
from mmdora.models.load import check_base, load_processor
from mmdora.models.memory import check_memory
from mmdora.ops import backend
from mmdora.records.images import FileRef, image_bytes
from mmdora.records.reader import Records
from mmdora.records.row import Row, videos_of
from mmdora.records.videos import VideoRef
from mmdora.records.videos import digest as video_digest

SHOWN_IDS = 3  # The most ids of records that an error names.
pc: Any = pyarrow.compute  # Its functions are made at import, so pyright does not know them.


def check_output(output: Path) -> None:
    """Raise an MmdoraError if no run folder can be made at `output`; it tries by making and removing a folder."""
    place = f"training.output: {str(output)!r}"
    try:
        if output.is_symlink() and not output.exists():
            raise MmdoraError(f"{place} is a link whose target does not exist; name another folder")
        os.stat(output)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise MmdoraError(f"{place}: {getattr(error, 'strerror', None) or error}; name another folder") from None
    if output.exists() and not output.is_dir():
        raise MmdoraError(f"{place} is a file, not a folder")
    there = next(folder for folder in (output, *output.absolute().parents) if folder.is_dir())
    try:
        Path(tempfile.mkdtemp(prefix=".mmdora-", dir=there)).rmdir()
    except OSError as error:
        raise MmdoraError(f"{place}: cannot write below {there} ({error.strerror}); name another folder") from None


def check_schedule(config: RunConfig) -> None:
    """Raise an MmdoraError if evaluations, checkpoints and early stopping do not fit together."""
    training = config.training
    if training.eval_every and not config.data.evaluates:
        raise MmdoraError("training.eval_every is set but data.eval is not")
    if config.data.evaluates and training.eval_every is None:
        raise MmdoraError("data.eval is set but training.eval_every is not")
    if not config.data.evaluates and (training.early_stopping or config.data.eval_generate_rows):
        key = "training.early_stopping" if training.early_stopping else "data.eval_generate_rows"
        raise MmdoraError(f"{key} is set but data.eval is not: give held-out records")
    for source in config.data.sources.values() if config.data.eval_generate_rows else ():
        task_of(source.eval_task)
    if training.steps is not None:
        check_warmup(config, training.steps)
    if training.eval_every and training.save_every and training.save_every % training.eval_every:
        raise MmdoraError(
            f"training.save_every {training.save_every} must be a multiple of training.eval_every {training.eval_every}"
            " (the best checkpoint is chosen among the saved ones)"
        )


def check_warmup(config: RunConfig, steps: int) -> None:
    """Raise an MmdoraError if the warmup is so long that the learning rate would never reach its peak."""
    warmup = config.training.warmup
    if warmup >= max(steps, 2):
        raise MmdoraError(
            f"training.warmup {warmup:g}: the run has {steps} steps, so the learning rate would never reach "
            "training.lr; give fewer, or a share of the steps below 1"
        )


def check_packages(config: RunConfig) -> None:
    """Raise an MmdoraError if a reporter or the optimizer needs a package or a device that is not there."""
    for name in config.training.report_to:
        if find_spec(name) is None:
            raise MmdoraError(f"training.report_to: {name} is not installed; pip install {name}, or leave it out")
    if config.training.optimizer == "adamw_8bit":
        if not torch.cuda.is_available():
            raise MmdoraError("training.optimizer: adamw_8bit needs a CUDA device; use adamw here")
        if find_spec("bitsandbytes") is None:
            raise MmdoraError("training.optimizer: adamw_8bit needs bitsandbytes; pip install 'mmdora[8bit]'")


def device_notes(config: RunConfig, device: torch.device) -> list[str]:
    """Lines about what this device does in another way than a newer or better equipped one would."""
    notes = [backend.problem(device)]
    if "bf16" in (config.model.dtype, config.training.precision) and backend.emulates_bf16(device):
        notes.append(
            f"{torch.cuda.get_device_name(device)} has no units for bf16 and emulates it, which is slow; "
            "model.dtype: fp32 with training.precision: fp32 may take less time"
        )
    return [note for note in notes if note is not None]


def check_plan(config: RunConfig, device: str | torch.device | None = None, *, trust_remote_code: bool = False) -> None:
    """Raise the errors that the base, `inject` and the feature cache would raise, from the base's config alone.

    Args:
        device: where the whole model will be trained; None if each device gets a part of it. Then only the memory for
            loading is compared with what is free.
    """
    check_base(config.base, trust_remote_code=trust_remote_code, template=template_of(config.data))
    model = skeleton_of(config, trust_remote_code=trust_remote_code)
    plan = make_plan(model, config.adapt)
    held = 0 if device is None else held_bytes(plan, config)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun and accelerate set it.
    what = "what is trained, its gradients and the optimizer" if held else ""
    dtype: Any = config.model.dtype
    check_memory(config.base, model, dtype, device, beside=held, what=what, processes=local)
    if config.data.feature_cache is not None:
        from mmdora.models.vlbart.feature_cache import tower_of  # It imports open_clip, which few runs need.

        tower_of(model, family_of(load_processor(config.base, trust_remote_code=trust_remote_code)))


def held_bytes(plan: Plan, config: RunConfig) -> int:
    """Bytes that training holds during a whole step beside the frozen weights: less than a step takes.

    They are the trained weights, their gradients and the optimizer's state, without what the base counts already.
    """
    training, size = config.training, DTYPES[config.model.dtype].itemsize
    full = sum(plan.full_sizes.values())
    wide = 4 if training.precision == "bf16" else size  # Trained weights are raised to fp32 under autocast.
    moments = {"adamw": 2.0, "adamw_8bit": 0.5}[training.optimizer]  # as multiples of weights in fp32
    low_rank = plan.trainable - full
    return int(low_rank * 4 * (2 + moments) + full * (wide * (2 + moments) - size))


def check_apart(train: Records, held_out: Records, *, pieces: bool = False) -> None:
    """Raise an MmdoraError if a record to evaluate on is also trained on, which its id or its content can show.

    The content is the messages and the names of the images; if the images lie below different folders, their files are
    compared too. Contents are compared whatever the ids are, because different tools give the same record different
    ids.

    Args:
        pieces: whether `train` was cut into pieces, whose ids end in "#" and a number.
    """
    both = pc.is_in(held_out.ids, value_set=_found(train.ids, held_out.ids))
    if pieces:
        whole = pc.replace_substring_regex(train.ids, r"#\d+$", "")
        both = pc.or_(both, pc.is_in(held_out.ids, value_set=_found(whole, held_out.ids)))
    if found := pc.sum(both).as_py():
        names = held_out.ids.filter(both)[:SHOWN_IDS].to_pylist()
        raise MmdoraError(
            f"data.eval: {found:,} of {len(held_out):,} records of {held_out.path} have an id that is in "
            f"{train.path} too ({_listed(names, found)}); hold out other records, or give them ids of their own"
        )
    if same := _same_contents(train, held_out):
        names = [held_out[index]["id"] for index in same[:SHOWN_IDS]]
        raise MmdoraError(
            f"data.eval: {len(same):,} of {len(held_out):,} records of {held_out.path} have the messages and images of "
            f"a record of {train.path} ({_listed(names, len(same))}); leave them out of one of the files"
        )


def _listed(names: list[str], found: int) -> str:
    return ", ".join(map(repr, names)) + (", …" if found > SHOWN_IDS else "")


def _found(ids: Any, wanted: Any) -> Any:
    """The ids that are among `wanted`. Arrow makes a hash table of `wanted`, so `wanted` should be the shorter list."""
    return pc.unique(ids.filter(pc.is_in(ids, value_set=wanted)))


def _same_contents(train: Records, held_out: Records) -> list[int]:
    """Indices of the records of `held_out` that are in `train` too."""
    shared = _found(train.contents, held_out.contents)
    if not len(shared):
        return []
    same = np.flatnonzero(pc.is_in(held_out.contents, value_set=shared).to_numpy())
    if train.root.resolve() == held_out.root.resolve():
        return same.tolist()
    learned = np.flatnonzero(pc.is_in(train.contents, value_set=shared).to_numpy())
    twins: dict[int, set[tuple[str, ...]]] = {}
    digest = lru_cache(maxsize=None)(_digest)
    for index in learned.tolist():
        images = tuple(map(digest, _files(train[index])))
        twins.setdefault(train.contents[index].as_py(), set()).add(images)
    return [
        index
        for index in same.tolist()
        if tuple(map(digest, _files(held_out[index]))) in twins[held_out.contents[index].as_py()]
    ]


def _files(row: Row) -> list[FileRef | VideoRef]:
    return [*row["images"], *videos_of(row)]


def _digest(file: FileRef | VideoRef) -> str:
    return video_digest(file) if isinstance(file, VideoRef) else sha256(image_bytes(file)[0])
