"""`transformers.Trainer`, subclassed where adapters need it and nowhere else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mmdora.adapters import restore_adapter, save_adapter
from mmdora.config import RunConfig
from mmdora.data.fit import Rows
from mmdora.data.sampler import GroupedSampler
from mmdora.train.groups import parameter_groups


class AdapterTrainer(Trainer):
    """Optimizer groups per modality, checkpoints that hold adapters only, a reproducible order of rows.

    The stock `_load_from_checkpoint` and `_load_best_model` load nothing into an unwrapped LLaVA
    (legacy key names, `strict=False`); these are strict.
    """

    model: Any

    def __init__(self, config: RunConfig, rows: Rows, **kwargs: Any):
        self.config, self.rows = config, rows
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

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_adapter(self.model, Path(str(output_dir or self.args.output_dir)), base=self.config.model.base)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore_adapter(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


class RunLog(TrainerCallback):
    """A progress bar with loss and speed, and `log.jsonl` with one line per log."""

    def __init__(self, path: Path, rows_per_step: int):
        self.path, self.rows_per_step = path, rows_per_step
        self.bar: tqdm | None = None
        self.since: tuple[float, int] = (0.0, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # a resumed run rewrites what the stopped one logged after its last checkpoint
        history = [entry for entry in state.log_history if entry.get("step", 0) <= state.global_step]
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")
        self.since = (time.monotonic(), state.global_step)
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        entry = {"step": state.global_step, **{key: _number(value) for key, value in (logs or {}).items()}}
        if "loss" in entry:
            now = time.monotonic()
            steps = state.global_step - self.since[1]
            entry["samples_per_s"] = round(steps * self.rows_per_step / max(now - self.since[0], 1e-9), 2)
            self.since = (now, state.global_step)
            if self.bar is not None:
                self.bar.set_postfix(loss=f"{entry['loss']:.4f}", samples_per_s=f"{entry['samples_per_s']:.0f}")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, (int, float, torch.Tensor)) else value
