"""A config as `transformers.TrainingArguments`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments

from mmdora.config import RunConfig
from mmdora.train.early_stopping import LOSS, SCORE


def arguments_of(config: RunConfig) -> TrainingArguments:
    """Every key of a config that the stock trainer knows; what is ours is in `AdapterTrainer` and its callbacks."""
    data, training = config.data, config.training
    every, evaluates = training.save_every, data.evaluates
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
        **({"optim": "adamw_8bit"} if training.optimizer == "adamw_8bit" else {}),
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
        metric_for_best_model=metric(config) if evaluates else None,
        greater_is_better=metric(config) == SCORE if evaluates else None,
        dataloader_num_workers=data.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},  # else the copy waits for the device's work
        remove_unused_columns=False,
        label_names=["labels"],
        # without it, processes that torchrun starts where there is no GPU do not meet, and each trains alone
        use_cpu=not torch.accelerator.is_available(),
        ddp_broadcast_buffers=False,  # none changes that is not frozen
        report_to="none",  # reporters are callbacks here
        run_name=training.output.name,
        seed=training.seed,
        disable_tqdm=True,
    )


def metric(config: RunConfig) -> str:
    """What chooses the best checkpoint."""
    return LOSS if config.data.eval_generate_rows is None else SCORE


def _activation_checkpointing(on: bool) -> dict[str, Any]:
    # the name changed within transformers 5, and the old one warns in the new
    new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if on else {}
