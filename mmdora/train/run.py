"""`train`: a config in, a run folder out."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainingArguments, set_seed
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from mmdora.adapters import restore_adapter, save_adapter
from mmdora.config import RunConfig
from mmdora.data.collate import Collator
from mmdora.data.fit import Rows, fit
from mmdora.data.records import read_records
from mmdora.errors import Interrupted, MmdoraError
from mmdora.injectors import inject, trainable_parameters
from mmdora.models.load import load
from mmdora.train.checkpoint import STAGING, best_of, writing_to
from mmdora.train.guards import StopRequest
from mmdora.train.log import RunLog
from mmdora.train.resume import CONFIG, DONE, check_changes, content, find_checkpoint, steps_done
from mmdora.train.trainer import AdapterTrainer

PLAN, LOG = "plan.txt", "log.jsonl"


def train(
    config: RunConfig,
    *,
    resume: bool | Path = False,
    allow_changes: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Train adapters and write a run folder.

    The folder holds the resolved `config.yaml`, `plan.txt`, `log.jsonl`, `tensorboard/`,
    `checkpoint-N/`, `adapter/` (the best by evaluation loss when there is one, else the last) and,
    written last, `complete.json`.

    Args:
        resume: continue from the newest whole checkpoint (True) or from the given one.
        allow_changes: go on although config, data or base are not those of the stopped run.
        say: receives the lines meant for a person.

    Raises:
        Interrupted: after SIGTERM or SIGINT, when the step in hand is done and saved.
        MmdoraError: when config, data or run folder do not fit together; before the model is loaded
            wherever that can be known. Or when there is no room to write.
    """
    with writing_to(config.training.output):
        return _train(config, resume, allow_changes, say)


def _train(config: RunConfig, resume: bool | Path, allow_changes: bool, say: Callable[[str], None]) -> Path:
    output = config.training.output
    checkpoint, before = find_checkpoint(output, resume, say)
    _check_schedule(config)
    if config.data.train is None:
        raise MmdoraError("data.train: give the file of records to train on")
    records = read_records(config.data.train, config.data.images, max_turns=config.data.max_turns)
    held_out = read_records(config.data.eval, config.data.images) if config.data.eval else None
    facts = {"data": {str(path): content(path) for path in (config.data.train, config.data.eval) if path}}
    if before is not None:
        check_changes(config, before, facts, allow_changes, say)

    set_seed(config.training.seed)
    model, processor = load(config.model.base, dtype=config.model.dtype)
    plan = inject(model, config.adapt)
    facts |= {"base": plan.fingerprint, "plan": str(plan)}
    if before is not None:
        check_changes(config, before, facts, allow_changes, say)
    if config.training.precision == "bf16":
        for _, parameter, _, _ in trainable_parameters(model):
            parameter.data = parameter.data.float()  # small updates vanish in bf16; autocast computes in bf16
    rows = fit(records, processor, config.data.max_length, config.data.too_long)
    say(str(plan))
    say(_describe(rows, config))
    output.mkdir(parents=True, exist_ok=True)
    (output / DONE).unlink(missing_ok=True)
    shutil.rmtree(output / STAGING, ignore_errors=True)  # of a save that was killed
    _replace(output / CONFIG, config.save)
    (output / PLAN).write_text(f"{plan}\n", encoding="utf-8")

    evaluation = _first(fit(held_out, processor, config.data.max_length, "drop"), config) if held_out else None
    per_step = config.training.batch_size * config.training.accumulation
    stop, log = StopRequest(), RunLog(output / LOG, per_step)
    trainer = AdapterTrainer(
        config,
        rows,
        facts,
        model=model,
        args=_arguments(config, evaluation is not None),
        data_collator=Collator(processor, records.root),
        eval_dataset=evaluation,
        callbacks=[
            stop,
            log,
            TensorBoardCallback(SummaryWriter(str(output / "tensorboard"))),
        ],
    )
    started = time.monotonic()
    steps = config.training.steps or math.ceil(config.training.epochs * trainer.steps_per_epoch)
    if checkpoint is not None and steps_done(checkpoint) >= steps:
        restore_adapter(model, best_of(checkpoint) or checkpoint)  # stopped between the last step and the end
        trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    else:
        with stop.listening(), closing(log):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stop.signal is not None and trainer.state.global_step < trainer.state.max_steps:
            step = trainer.state.global_step
            raise Interrupted(
                f"{stop.signal.name}: stopped after step {step} of {trainer.state.max_steps}; saved as "
                f"{output / f'checkpoint-{step}'}; go on with --resume",
                128 + stop.signal,
            )
    seconds = time.monotonic() - started
    trainer.check_finite()
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
    _replace(output / DONE, lambda path: path.write_text(json.dumps(done, indent=2), encoding="utf-8"))
    return output


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the file, then rename over it: a kill leaves the old one or the new one."""
    beside = path.with_name(f".{path.name}.tmp")
    write(beside)
    os.replace(beside, path)


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
        save_total_limit=None,  # rotation is ours: the stock one may keep the best alone
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


def _first(rows: Rows, config: RunConfig) -> Any:
    limit = config.data.eval_rows
    return rows if limit is None else torch.utils.data.Subset(rows, range(min(limit, len(rows))))


def _describe(rows: Rows, config: RunConfig) -> str:
    images = int(rows.has_image.sum())
    text = f"data: {len(rows)} rows, {images} with images, {len(rows) - images} text only"
    if rows.dropped or rows.shrunk:
        text += f"; over {config.data.max_length} tokens: {rows.dropped} dropped, {rows.shrunk} shrunk"
    return text
