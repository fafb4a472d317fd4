"""`transformers.Trainer`, subclassed where adapters need it and nowhere else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mmdora.adapters import restore_adapter, save_adapter
from mmdora.config import RunConfig
from mmdora.data.fit import Rows
from mmdora.data.sampler import GroupedSampler
from mmdora.errors import MmdoraError
from mmdora.train import checkpoint
from mmdora.train.checkpoint import MANIFEST, best_of
from mmdora.train.groups import parameter_groups
from mmdora.train.guards import where_not_finite
from mmdora.train.loss import ChunkedLoss


class AdapterTrainer(Trainer):
    """Optimizer groups per modality, whole checkpoints that hold adapters only, a reproducible order of rows.

    The stock `_load_from_checkpoint` and `_load_best_model` load nothing into an unwrapped LLaVA
    (legacy key names, `strict=False`); these are strict. The stock loss log and its mean start anew after a
    resume; here they go on.

    Args:
        facts: what a checkpoint's manifest says about the run: fingerprints of base and data.
    """

    model: Any
    _tr_loss: Any
    _total_loss_scalar: Any
    _globalstep_last_logged: Any

    def __init__(self, config: RunConfig, rows: Rows, facts: Mapping[str, Any], **kwargs: Any):
        self.config, self.rows, self.facts = config, rows, facts
        self.skipped = 0
        self._folder: Path | None = None  # where a checkpoint is being written
        self._micro_batches: list[Any] = []  # of the step in hand
        self._loss_before: Any = None  # what `_tr_loss` was before it
        self._chunked: ChunkedLoss | None = None
        super().__init__(train_dataset=rows, **kwargs)
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.config.adapt, self.config.training)
            kind, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(groups, **kwargs)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        data, training = self.config.data, self.config.training
        return GroupedSampler(
            len(self.rows),
            training.batch_size,
            training.seed,
            self.rows.lengths if data.group_by_length else None,
            self.rows.has_image,
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with self._loss_of(model, inputs) if model.training else nullcontext():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _loss_of(self, model: Any, inputs: Any) -> AbstractContextManager[None]:
        """Chunked where the config wants it and the first batch shows that it is this model's loss."""
        if self._chunked is None and self.config.training.chunked_loss:
            self._chunked = ChunkedLoss(self.model)
            if problem := self._chunked.problem(inputs):
                tqdm.write(f"loss: over all positions at once, since {problem}")
                self._chunked.usable = False
        return self._chunked.applied() if self._chunked is not None and self._chunked.usable else nullcontext()

    # --- checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._folder or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output = Path(str(self.args.output_dir))
        self.check_finite()
        loss: Any = self.accelerator.reduce(self._tr_loss, "mean")
        logging = {
            "loss": float(loss),
            "since": self._globalstep_last_logged,
            "total": self._total_loss_scalar,
        }
        with checkpoint.staged(output, self.state.global_step) as folder:
            self._folder = folder.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._folder = None
            if self.state.best_model_checkpoint == str(folder):
                self.state.best_model_checkpoint = str(output / folder.name)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
                facts = {"step": self.state.global_step, "skipped": self.skipped, "logging": logging, **self.facts}
                checkpoint.seal(folder, facts)
        best = self.state.best_model_checkpoint
        if self.args.should_save:
            written = output / f"checkpoint-{self.state.global_step}"
            checkpoint.rotate(written, self.config.training.keep, Path(best) if best else None)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            save_adapter(self.model, Path(str(output_dir or self.args.output_dir)), base=self.config.model.base)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore_adapter(self.model, Path(resume_from_checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:  # the last thing before the first step: what else the loop holds in memory
            manifest = json.loads((Path(checkpoint) / MANIFEST).read_text(encoding="utf-8"))
            logging, self.skipped = manifest["logging"], manifest["skipped"]
            self._tr_loss.fill_(logging["loss"])
            self._globalstep_last_logged, self._total_loss_scalar = logging["since"], logging["total"]
            best = best_of(Path(checkpoint))
            self.state.best_model_checkpoint = str(best) if best else None

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """The best is one of the regular checkpoints: whether a signal came must not show in the adapter."""
        step = self.state.global_step
        regular = step % self.args.save_steps == 0 or step >= self.state.max_steps
        return (regular or not self.args.load_best_model_at_end) and super()._determine_best_metric(metrics, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs:  # the stock one divides what was summed before a resume too by the steps since
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step - self.skipped, 1)
        super().log(logs, start_time)

    # --- steps that must not be taken

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        if not self._micro_batches:
            self._loss_before = self._tr_loss.clone()
        self._micro_batches.append(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm before the update; one that is not finite ends the run, or leaves the step out and is None."""
        norm: Any = super()._get_grad_norm(model, grad_norm)
        batches, self._micro_batches = self._micro_batches, []
        if bool(torch.isfinite(self._tr_loss + norm)):  # one look at the device for both
            return norm
        training, step = self.config.training, self.state.global_step + 1
        found = f"gradient norm {float(norm):g}, loss {float(self._tr_loss):g}"
        rows = f"rows {', '.join(self._row_names(len(batches)))}"
        if training.on_nonfinite == "skip" and self.skipped < training.max_skipped:
            self.skipped += 1
            model.zero_grad()  # without gradients the optimizer does nothing
            self._tr_loss.copy_(self._loss_before)
            self._globalstep_last_logged += 1  # the logged mean is over the steps that were taken
            tqdm.write(f"step {step} left out ({self.skipped} of at most {training.max_skipped}): {found}; {rows}")
            return None
        place = where_not_finite(self.model, self._loss_again, batches)
        left_out = f" ({self.skipped} steps were left out before)" if self.skipped else ""
        skip = ", or set training.on_nonfinite: skip" if training.on_nonfinite == "stop" else ""
        raise MmdoraError(
            f"step {step}: {found}; {place}; {rows}; the update was not made and nothing of it was saved{left_out}. "
            f"Look at these rows or lower training.lr{skip}"
        )

    def check_finite(self) -> None:
        """Raise an MmdoraError if an update made a parameter or what the optimizer keeps of it not finite."""
        kept: Any = self.optimizer.state if self.optimizer is not None else {}
        for name, parameter in self.model.named_parameters():
            state = {f"{name}'s {key}": value for key, value in kept.get(parameter, {}).items()}
            for what, value in {name: parameter, **state}.items() if parameter.requires_grad else ():
                if isinstance(value, Tensor) and not bool(value.isfinite().all()):
                    raise MmdoraError(
                        f"step {self.state.global_step}: the update made {what} not finite; it was not saved. "
                        "Lower training.lr, or go on from an earlier checkpoint with --resume"
                    )

    @property
    def steps_per_epoch(self) -> int:
        batches = math.ceil(len(self.rows) / (self.args.per_device_train_batch_size * self.args.world_size))
        return math.ceil(batches / self.args.gradient_accumulation_steps)

    def _loss_again(self, inputs: Any) -> Any:
        with self.compute_loss_context_manager():
            return self.compute_loss(self.model, self._prepare_inputs(inputs))

    def _row_names(self, micro_batches: int) -> list[str]:
        """Ids of the rows of the step in hand on this process."""
        size, processes = self.args.per_device_train_batch_size, self.args.world_size
        epoch, step = divmod(self.state.global_step, self.steps_per_epoch)
        sampler: Any = self._get_train_sampler()
        sampler.set_epoch(epoch)
        order, names = sampler.order(), []
        for batch in range(micro_batches):
            first = (step * self.args.gradient_accumulation_steps + batch) * processes + self.args.process_index
            names += [str(self.rows[int(i)]["id"]) for i in order[first * size : (first + 1) * size]]
        return names
