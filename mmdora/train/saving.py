"""How the Trainer writes and reads checkpoints: whole ones, of adapters alone, whatever the number of processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import set_seed
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from mmdora.adapter_files.adapters import restore_adapter, save_adapter
from mmdora.adapter_files.files import CONFIG, OURS, WEIGHTS
from mmdora.errors import MmdoraError
from mmdora.train import checkpoint
from mmdora.train.batch_size import FittingTrainer
from mmdora.train.checkpoint import MANIFEST, best_of
from mmdora.train.sharded import local, spread_state, whole, whole_state


class SavingTrainer(FittingTrainer):
    """Checkpoints that hold adapters only, and nothing that is not finite.

    The stock `_load_from_checkpoint` and `_load_best_model` load nothing into an unwrapped LLaVA
    (legacy key names, `strict=False`); these are strict. The stock loss log and its mean start anew after a
    resume; here they go on. What one process cannot write, all hear of: they meet within a save.
    """

    model: Any
    optimizer: Any
    lr_scheduler: Any
    facts: Mapping[str, Any]
    skipped: int
    _total_loss_scalar: Any
    _globalstep_last_logged: Any
    _folder: Path | None = None  # where a checkpoint is being written
    _unwritten: Exception | None = None  # what kept this process from writing its part of it

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._folder or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output, main = Path(str(self.args.output_dir)), self.processes.main
        with self.processes.together():
            self.check_finite()
        loss: Any = self.accelerator.reduce(self._tr_loss, "mean")
        logging = {
            "loss": float(loss),
            "since": self._globalstep_last_logged,
            "total": self._total_loss_scalar,
        }
        with self.processes.together(), checkpoint.staged(output, self.state.global_step, main) as folder:
            self.processes.any(False)  # an older `.saving` is gone before anyone writes
            self._fill(folder, model, trial)
            if self.processes.any(self._unwritten is not None):
                if self._unwritten is not None:
                    raise self._unwritten
            elif main:
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
                facts = {"step": self.state.global_step, "skipped": self.skipped, "logging": logging, **self.facts}
                if self.pieces is not None:
                    facts["micro_batch"] = self.pieces.limit
                checkpoint.seal(folder, facts)
        best = self.state.best_model_checkpoint
        with self.processes.together():
            if main:
                written = output / f"checkpoint-{self.state.global_step}"
                checkpoint.rotate(written, self.config.training.keep, Path(best) if best else None)

    def _fill(self, folder: Path, model: Any, trial: Any) -> None:
        """Write this process's part of a checkpoint, or note why not in `_unwritten`: inside it meets the others."""
        self._folder, self._unwritten = folder.parent, None
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:
            self._unwritten = self._unwritten or error
        finally:
            self._folder = None
        if self.state.best_model_checkpoint == str(folder):
            self.state.best_model_checkpoint = str(folder.parents[1] / folder.name)

    def _write(self, write: Callable[..., object], *args: Any) -> None:
        if self._unwritten is None:
            try:
                write(*args)
            except Exception as error:
                self._unwritten = error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The adapter; all processes call it, and the main one writes."""
        folder = Path(str(output_dir or self.args.output_dir))
        with whole(self.model) if self.processes.sharded else nullcontext():
            if self.processes.main:
                about = {"base": self.config.base, "image_tokens": self.config.data.image_tokens}
                self._write(partial(save_adapter, self.model, folder, **about))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            self._write(super()._save_optimizer_and_scheduler, output_dir)
            return
        state = whole_state(self.optimizer.state_dict())  # the file is that of a run that is not sharded
        if self.processes.main:
            self._write(torch.save, state, Path(output_dir, OPTIMIZER_NAME))
            self._write(torch.save, self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _save_rng_state(self, output_dir: str) -> None:
        self._write(super()._save_rng_state, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(spread_state(state, self.optimizer))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))

    def _prepare_for_training(self, max_steps: Any, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        if resume_from_checkpoint is not None and self.is_fsdp_enabled:  # while the parameters are whole
            restore_adapter(self.model, Path(resume_from_checkpoint))
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_fsdp_enabled:
            restore_adapter(self.model, Path(resume_from_checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:  # the last thing before the first step: what else the loop holds in memory
            manifest = json.loads((Path(checkpoint) / MANIFEST).read_text(encoding="utf-8"))
            if manifest.get("processes", 1) != self.processes.count:
                entropy = (abs(self.config.training.seed), self.state.global_step, self.processes.index)
                set_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
                self.say("another number of processes than before: dropout draws anew from here on")
            if self.pieces is not None and "micro_batch" in manifest:
                self.pieces.limit = min(manifest["micro_batch"], self.pieces.limit)
            logging, self.skipped = manifest["logging"], manifest["skipped"]
            self._tr_loss.fill_(logging["loss"])
            self._globalstep_last_logged, self._total_loss_scalar = logging["since"], logging["total"]
            best = best_of(Path(checkpoint))
            self.state.best_model_checkpoint = str(best) if best else None

    def _load_best_model(self) -> None:
        if not self.processes.sharded:
            restore_adapter(self.model, Path(str(self.state.best_model_checkpoint)))

    def write_adapter(self, folder: Path) -> None:
        """The result of the run; all processes call it, and the main one writes."""
        best, self._unwritten = self.state.best_model_checkpoint, None
        if not (self.processes.sharded and best and self.args.load_best_model_at_end):
            self.save_model(str(folder))
        elif self.processes.main:
            self._write(_copy_adapter, Path(best), folder)
        with self.processes.together():
            if self._unwritten is not None:
                raise self._unwritten

    def check_finite(self) -> None:
        """Raise an MmdoraError if an update made a parameter or what the optimizer keeps of it not finite."""
        kept: Any = self.optimizer.state if self.optimizer is not None else {}
        for name, parameter in self.model.named_parameters():
            state = {f"{name}'s {key}": value for key, value in kept.get(parameter, {}).items()}
            for what, value in {name: parameter, **state}.items() if parameter.requires_grad else ():
                if isinstance(value, Tensor) and not bool(local(value).isfinite().all()):
                    raise MmdoraError(
                        f"step {self.state.global_step}: the update made {what} not finite; it was not saved. "
                        "Lower training.lr, or go on from an earlier checkpoint with --resume"
                    )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """The best is one of the regular checkpoints: whether a signal came must not show in the adapter."""
        step = self.state.global_step
        regular = step % self.args.save_steps == 0 or step >= self.state.max_steps
        return (regular or not self.args.load_best_model_at_end) and super()._determine_best_metric(metrics, trial)


def _copy_adapter(checkpoint: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in (checkpoint / WEIGHTS, checkpoint / CONFIG, checkpoint / OURS):
        if path.exists():
            shutil.copyfile(path, folder / path.name)
