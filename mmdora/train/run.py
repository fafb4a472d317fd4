"""`train`: a config in, a run folder out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainingArguments, set_seed
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from mmdora.adapters import restore_adapter, save_adapter
from mmdora.config import RunConfig
from mmdora.data.collate import Collator
from mmdora.data.fit import Rows, fit
from mmdora.data.records import read_records
from mmdora.errors import MmdoraError
from mmdora.injectors import inject, trainable_parameters
from mmdora.models.load import load
from mmdora.train.trainer import AdapterTrainer, RunLog

CONFIG, PLAN, LOG, DONE = "config.yaml", "plan.txt", "log.jsonl", "complete.json"
FREE_ON_RESUME = {"training.log_every", "training.keep", "training.output"}  # do not change what is computed


def train(config: RunConfig, *, resume: bool | Path = False, say: Callable[[str], None] = print) -> Path:
    """Train adapters and write a run folder.

    The folder holds the resolved `config.yaml`, `plan.txt`, `log.jsonl`, `tensorboard/`,
    `checkpoint-N/`, `adapter/` (the best by evaluation loss when there is one, else the last) and,
    written last, `complete.json`.

    Args:
        resume: continue from the newest checkpoint (True) or from the given one.
        say: receives the lines meant for a person.

    Raises:
        MmdoraError: when config, data or run folder do not fit together; before the model is loaded
            wherever that can be known.
    """
    output = config.training.output
    checkpoint = _check_output(config, resume)
    _check_schedule(config)
    if config.data.train is None:
        raise MmdoraError("data.train: give the file of records to train on")
    records = read_records(config.data.train, config.data.images, max_turns=config.data.max_turns)
    held_out = read_records(config.data.eval, config.data.images) if config.data.eval else None

    set_seed(config.training.seed)
    model, processor = load(config.model.base, dtype=config.model.dtype)
    plan = inject(model, config.adapt)
    if config.training.precision == "bf16":
        for _, parameter, _, _ in trainable_parameters(model):
            parameter.data = parameter.data.float()  # small updates vanish in bf16; autocast computes in bf16
    rows = fit(records, processor, config.data.max_length, config.data.too_long)
    say(str(plan))
    say(_describe(rows, config))
    output.mkdir(parents=True, exist_ok=True)
    config.save(output / CONFIG)
    (output / PLAN).write_text(f"{plan}\n", encoding="utf-8")

    evaluation = _first(fit(held_out, processor, config.data.max_length, "drop"), config) if held_out else None
    per_step = config.training.batch_size * config.training.accumulation
    trainer = AdapterTrainer(
        config,
        rows,
        model=model,
        args=_arguments(config, evaluation is not None),
        data_collator=Collator(processor, records.root),
        eval_dataset=evaluation,
        callbacks=[
            RunLog(output / LOG, per_step),
            TensorBoardCallback(SummaryWriter(str(output / "tensorboard"))),
        ],
    )
    started = time.monotonic()
    if checkpoint is not None and _is_last(checkpoint):
        restore_adapter(model, _best(checkpoint))  # stopped between the last step and the end
        trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.monotonic() - started
    save_adapter(model, output / "adapter", base=config.model.base)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    done = {
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "resumed": checkpoint is not None,
        "final_loss": losses[-1] if losses else None,
        "best_eval_loss": trainer.state.best_metric,
        "trainable": plan.trainable,
        "device": str(trainer.args.device),
        "threads": torch.get_num_threads(),
    }
    (output / DONE).write_text(json.dumps(done, indent=2), encoding="utf-8")
    return output


def _arguments(config: RunConfig, evaluates: bool) -> TrainingArguments:
    data, training = config.data, config.training
    every = training.save_every
    return TrainingArguments(
        output_dir=str(training.output),
        max_steps=training.steps or -1,
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=training.lr,
        lr_scheduler_type=training.schedule if training.schedule != "constant" else "constant_with_warmup",
        warmup_steps=training.warmup,
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_eps,
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bf16",
        **_activation_checkpointing(training.gradient_checkpointing),
        logging_steps=training.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # the filter logs 0.0 where the loss is NaN
        eval_strategy="steps" if evaluates else "no",
        eval_steps=training.eval_every,
        save_strategy="steps" if every else "no",
        save_steps=every or 500,
        save_total_limit=training.keep,
        load_best_model_at_end=bool(evaluates and every),
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        dataloader_num_workers=data.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        seed=training.seed,
        disable_tqdm=True,
    )


def _activation_checkpointing(on: bool) -> dict[str, Any]:
    # the name changed within transformers 5, and the old one warns in the new
    new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if on else {}


def _check_schedule(config: RunConfig) -> None:
    training = config.training
    if training.eval_every and config.data.eval is None:
        raise MmdoraError("training.eval_every is set but data.eval is not")
    if config.data.eval is not None and training.eval_every is None:
        raise MmdoraError("data.eval is set but training.eval_every is not")
    if training.eval_every and training.save_every and training.save_every % training.eval_every:
        raise MmdoraError(
            f"training.save_every {training.save_every} must be a multiple of training.eval_every {training.eval_every}"
            " (the best checkpoint is chosen among the saved ones)"
        )


def _check_output(config: RunConfig, resume: bool | Path) -> Path | None:
    """The checkpoint to resume from, or None for a fresh run."""
    output = config.training.output
    if output.exists() and not output.is_dir():
        raise MmdoraError(f"training.output: {output} is a file, not a folder")
    if not resume:
        if (output / CONFIG).exists():
            raise MmdoraError(f"training.output: {output} holds a run; use --resume, or another folder")
        return None
    newest = get_last_checkpoint(str(output)) if output.is_dir() else None
    checkpoint = resume if isinstance(resume, Path) else Path(newest) if newest else None
    if checkpoint is None:
        if (output / DONE).exists() or not (output / CONFIG).exists():
            raise MmdoraError(f"--resume: no checkpoint in {output}")
    elif not (checkpoint / TRAINER_STATE_NAME).is_file():
        raise MmdoraError(f"--resume: {checkpoint} is not a checkpoint of a run")
    before = yaml.safe_load((output / CONFIG).read_text(encoding="utf-8")) if (output / CONFIG).exists() else {}
    changed = [
        f"{key}: {old!r} -> {new!r}"
        for key, old, new in _differences(before, config.to_dict())
        if key not in FREE_ON_RESUME
    ]
    if changed:
        raise MmdoraError(f"--resume: the config differs from the run in {output}: {'; '.join(changed)}")
    return checkpoint


def _is_last(checkpoint: Path) -> bool:
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    return state.global_step >= state.max_steps


def _best(checkpoint: Path) -> Path:
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    return checkpoint.parent / Path(state.best_model_checkpoint).name if state.best_model_checkpoint else checkpoint


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(set(old) | set(new))
        return [d for n in names for d in _differences(old.get(n), new.get(n), f"{key}.{n}".lstrip("."))]
    return [] if old == new else [(key, old, new)]


def _first(rows: Rows, config: RunConfig) -> Any:
    limit = config.data.eval_rows
    return rows if limit is None else torch.utils.data.Subset(rows, range(min(limit, len(rows))))


def _describe(rows: Rows, config: RunConfig) -> str:
    images = int(rows.has_image.sum())
    text = f"data: {len(rows)} rows, {images} with images, {len(rows) - images} text only"
    if rows.dropped or rows.shrunk:
        text += f"; over {config.data.max_length} tokens: {rows.dropped} dropped, {rows.shrunk} shrunk"
    return text
