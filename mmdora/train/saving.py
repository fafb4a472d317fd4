"""Saves and restores a run. Its checkpoints hold adapters only, and any number of processes can go on from them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import set_seed

from mmdora.adapt.gates import fold_gates
from mmdora.adapter_files.adapters import save_adapter
from mmdora.config import RunConfig
from mmdora.errors import MmdoraError
from mmdora.models.locate import lasting_name
from mmdora.train import checkpoint
from mmdora.train.checkpoint import ADAPTER, MANIFEST
from mmdora.train.gates import write_gates
from mmdora.train.loader import Pieces
from mmdora.train.optimizer import Trained, check_state, go_on, settings_of
from mmdora.train.processes import Processes
from mmdora.train.progress import OURS, Losses, Progress
from mmdora.train.sharded import local, spread_state, whole, whole_state

OPTIMIZER, SCHEDULE = "optimizer.pt", "scheduler.pt"


class Checkpoints:
    """Writes and reads the checkpoints of a run. All processes call each method together.

    A checkpoint holds the adapter, the state of the optimizer (`optimizer.pt`), the schedule (`scheduler.pt`), the
    random states (`rng_state.pth`, or `rng_state_INDEX.pth` of each of several processes), `trainer_state.json`
    (`Progress`) and `manifest.json`. With FSDP2 the files are the same as those of a single process. With DeepSpeed the
    state of the optimizer is in files of DeepSpeed's own.

    Args:
        facts: facts about the run for the manifest: fingerprints of base and data.
        pieces: holds the number of rows that fit; only with `training.find_batch_size`.
        template: the chat template in use, if it is not the base's own.
    """

    def __init__(
        self,
        config: RunConfig,
        processes: Processes,
        trained: Trained,
        facts: Mapping[str, Any],
        pieces: Pieces | None,
        template: str | None = None,
    ):
        self.config, self.processes, self.trained, self.facts, self.pieces = config, processes, trained, facts, pieces
        self.output, self.template = config.training.output, template

    def save(self, progress: Progress, losses: Losses) -> None:
        """Write a checkpoint, and delete those that are neither among the newest nor the best.

        Raises:
            MmdoraError: if a tensor is not finite, or there is no room; earlier checkpoints are unchanged.
        """
        with self.processes.together():
            self.check_finite(progress.global_step)
        main, step = self.processes.main, progress.global_step
        if progress.best_global_step == step:
            progress.best_model_checkpoint = str(self.output / f"checkpoint-{step}")
        logged = losses.facts()
        with self.processes.together(), checkpoint.staged(self.output, step, main) as folder:
            self.processes.any(False)  # All processes wait here until the main one has removed an older `.saving`.
            parts = _Parts(self.processes)
            parts.write(lambda: folder.mkdir(parents=True, exist_ok=True))
            self._write_adapter(folder, parts)
            if main:
                parts.write(lambda: write_gates(self.trained.model, folder))
            self._write_optimizer(folder, parts)
            parts.write(lambda: torch.save(self._random_numbers(), folder / self._random_name()))
            if parts.all_written() and main:
                progress.save(folder)
                facts = {"step": step, OURS: progress.results_after, **logged, **self.facts}
                if self.pieces is not None:
                    facts["micro_batch"] = self.pieces.limit
                checkpoint.seal(folder, facts)
        best = progress.best_model_checkpoint
        with self.processes.together():
            if main:
                written = self.output / f"checkpoint-{step}"
                checkpoint.rotate(written, self.config.training.keep, Path(best) if best else None)

    def restore(self, stored: Path, progress: Progress, losses: Losses) -> None:
        """Restore everything but the adapter, which `prepare` has loaded, and the random states.

        Learning rates, weight decay and the other settings are those of the config, which a resume may have changed.

        Raises:
            MmdoraError: if a file holds anything but plain data, or the state of another optimizer.
        """
        manifest = json.loads((stored / MANIFEST).read_text(encoding="utf-8"))
        optimizer, state = self.trained.optimizer, None
        settings = settings_of(optimizer)
        with self.processes.together(), _plain_data_of(stored):
            if not self.processes.deepspeed:
                # The file is mapped, not read: its tensors take no memory beside those that they are copied to.
                state = torch.load(stored / OPTIMIZER, map_location="cpu", weights_only=True, mmap=True)
                check_state(state, optimizer, stored)
            schedule = torch.load(stored / SCHEDULE, weights_only=True)
        if state is None:
            self.trained.wrapped.load_checkpoint(str(stored))
        else:
            optimizer.load_state_dict(spread_state(state, optimizer) if self.processes.fsdp else state)
        go_on(self.trained, settings, schedule["last_epoch"])
        losses.restore(manifest)
        if self.pieces is not None and "micro_batch" in manifest:
            self.pieces.limit = min(manifest["micro_batch"], self.pieces.limit)
        progress.restore(stored)
        progress.results_after = manifest.get(OURS, 0)
        if manifest.get("measured", self.facts["measured"]) != self.facts["measured"]:
            progress.begin_results_anew()

    def restore_random_numbers(self, stored: Path, step: int, say: Callable[[str], None]) -> None:
        """Restore the random states of the stopped run; if the number of processes has changed, set new ones."""
        manifest = json.loads((stored / MANIFEST).read_text(encoding="utf-8"))
        if manifest.get("processes", 1) != self.processes.count:
            entropy = (abs(self.config.training.seed), step, self.processes.index)
            set_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
            say("another number of processes than before: dropout draws anew from here on")
            return
        # The pickle of numpy's random state contains an array of uint32, so these have to be allowed.
        array: list[Any] = [np.empty(0).__reduce__()[0], np.ndarray, np.dtype, type(np.dtype(np.uint32))]
        with _plain_data_of(stored), torch.serialization.safe_globals(array):
            state = torch.load(stored / self._random_name(), weights_only=True)
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.random.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            if self.processes.count > 1:
                torch.cuda.set_rng_state_all(state["cuda"])
            else:
                torch.cuda.set_rng_state(state["cuda"])

    def write_result(self, folder: Path, best: Path | None) -> None:
        """Write the resulting adapter of the run. Its gates are folded away, in the model too.

        Args:
            folder: the folder to write to.
            best: the checkpoint whose adapter is the result; None if it is the model's current adapter. The best
                adapter is already loaded into the model, unless the parameters are sharded: then its files are copied.
        """
        parts = _Parts(self.processes)
        if best is not None and self.processes.sharded:
            if self.processes.main:
                parts.write(lambda: _copy_adapter(best, folder))
        else:
            fold_gates(self.trained.model)
            self._write_adapter(folder, parts)
        with self.processes.together():
            parts.all_written()

    def check_finite(self, step: int) -> None:
        """Raise an MmdoraError if a trained parameter, or the optimizer's state of it, is not finite."""
        kept: Any = self.trained.optimizer.state
        for name, parameter in self.trained.model.named_parameters():
            state = {f"{name}'s {key}": value for key, value in kept.get(parameter, {}).items()}
            for what, value in {name: parameter, **state}.items() if parameter.requires_grad else ():
                if isinstance(value, Tensor) and not bool(local(value).isfinite().all()):
                    raise MmdoraError(
                        f"step {step}: the update made {what} not finite; it was not saved. "
                        "Lower training.lr, or go on from an earlier checkpoint with --resume"
                    )

    def _write_adapter(self, folder: Path, parts: _Parts) -> None:
        model, base, tokens = self.trained.model, lasting_name(self.config.base), self.config.data.image_tokens
        write = partial(save_adapter, model, folder, base=base, image_tokens=tokens, template=self.template)
        with whole(model) if self.processes.sharded else nullcontext():
            if self.processes.main:
                parts.write(write)

    def _write_optimizer(self, folder: Path, parts: _Parts) -> None:
        optimizer, schedule = self.trained.optimizer, self.trained.schedule
        if self.processes.deepspeed:
            parts.write(lambda: self.trained.wrapped.save_checkpoint(str(folder)))
        else:
            state = optimizer.state_dict()
            if self.processes.fsdp:
                state = whole_state(state, keep=self.processes.main)
            if self.processes.main:
                parts.write(lambda: torch.save(state, folder / OPTIMIZER))
        if self.processes.main:
            parts.write(lambda: torch.save(schedule.state_dict(), folder / SCHEDULE))

    def _random_numbers(self) -> dict[str, Any]:
        state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()}
        if torch.cuda.is_available():
            several = self.processes.count > 1
            state["cuda"] = torch.cuda.get_rng_state_all() if several else torch.cuda.get_rng_state()
        return state

    def _random_name(self) -> str:
        return "rng_state.pth" if self.processes.count == 1 else f"rng_state_{self.processes.index}.pth"


class _Parts:
    """The parts of a checkpoint that this process writes.

    Processes wait for one another within a save. So an error is kept, and raised only when all have come to the end.
    """

    def __init__(self, processes: Processes):
        self.processes = processes
        self.failed: Exception | None = None

    def write(self, write: Callable[[], object]) -> None:
        if self.failed is None:
            try:
                write()
            except Exception as error:
                self.failed = error

    def all_written(self) -> bool:
        """Whether every process has written its parts; raises the error of this process, if there was one."""
        any_failed = self.processes.any(self.failed is not None)
        if self.failed is not None:
            raise self.failed
        return not any_failed


@contextmanager
def _plain_data_of(stored: Path) -> Iterator[None]:
    try:
        yield
    except (UnpicklingError, RuntimeError):  # RuntimeError: no archive that can be mapped, or a part of it is missing
        raise MmdoraError(
            f"{stored}: {OPTIMIZER}, {SCHEDULE} or rng_state.pth holds objects that are not plain data, and was "
            "not read further; go on from an earlier checkpoint, or start anew"
        ) from None


def _copy_adapter(stored: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in (stored / name for name in ADAPTER):
        if path.exists():
            shutil.copyfile(path, folder / path.name)
