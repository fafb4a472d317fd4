"""`train`: a config in, a run folder out."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from mmdora.adapt.inject import inject, trainable_parameters
from mmdora.adapter_files.adapters import restore_adapter
from mmdora.batches.fit import Rows
from mmdora.batches.packing import PackedCollator, Packs
from mmdora.batches.stream import Stream
from mmdora.config import RunConfig
from mmdora.errors import Interrupted, MmdoraError, OutOfMemory
from mmdora.evaluate.tasks import task_of
from mmdora.families import family_of
from mmdora.models.load import load, load_processor
from mmdora.train.arguments import arguments_of, metric
from mmdora.train.batch_size import estimated, is_out_of_memory, out_of_memory
from mmdora.train.check import check_output, check_packages, check_plan
from mmdora.train.checkpoint import STAGING, best_of, writing_to
from mmdora.train.early_stopping import EarlyStopping
from mmdora.train.features import features_of
from mmdora.train.guards import StopRequest
from mmdora.train.log import RunLog
from mmdora.train.packing import check_packing
from mmdora.train.processes import Processes
from mmdora.train.reach import unreached
from mmdora.train.readme import readme
from mmdora.train.report_to import reporters
from mmdora.train.resume import CONFIG, DONE, check_changes, find_checkpoint, steps_done
from mmdora.train.sources import (
    Sources,
    answers_of,
    describe,
    facts_of,
    held_out_of,
    read_sources,
    rows_of,
)
from mmdora.train.trainer import AdapterTrainer

PLAN, LOG, README = "plan.txt", "log.jsonl", "README.md"


def train(
    config: RunConfig,
    *,
    resume: bool | Path = False,
    allow_changes: bool = False,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Train adapters and write a run folder.

    The folder holds `README.md`, which explains it, `config.yaml`, `plan.txt`, `log.jsonl`, `tensorboard/`,
    `checkpoint-N/`, `adapter/` (the best by evaluation loss when there is one, else the last) and,
    written last, `complete.json`.

    Args:
        resume: continue from the newest whole checkpoint (True) or from the given one.
        allow_changes: go on although config, data or base are not those of the stopped run.
        trust_remote_code: run code that the base brings along.
        say: receives the lines meant for a person.

    Raises:
        Interrupted: after SIGTERM or SIGINT, when the step in hand is done and saved.
        MmdoraError: when config, data or run folder do not fit together; before the model is loaded
            wherever that can be known. Or when there is no room to write.
    """
    with writing_to(config.training.output):
        return _train(config, resume, allow_changes, trust_remote_code, say)


def _train(
    config: RunConfig, resume: bool | Path, allow_changes: bool, trust: bool, say: Callable[[str], None]
) -> Path:
    output = config.training.output
    _check_schedule(config)
    check_packages(config)
    arguments = arguments_of(config)
    processes = Processes(arguments)
    say = say if processes.main else _silent
    read: list[Sources] = []
    packs: Packs | None = None

    def begin() -> tuple[Path | None, dict[str, Any] | None, dict[str, Any]]:
        check_output(output)
        checkpoint, before = find_checkpoint(output, resume, say)
        facts: dict[str, Any] = {"processes": processes.count, "data": {}}
        if before is not None:
            check_changes(config, before, facts, allow_changes, say)
        if not config.data.sources:
            raise MmdoraError("data.train: give the file of records to train on")
        if config.data.stream and processes.sharded:
            raise MmdoraError("data.stream: not with FSDP or DeepSpeed, where every micro-batch has to have an image")
        if config.model.compose is not None:
            from mmdora.models.llava.compose import compose_into  # imports what only a composed base needs

            compose_into(Path(config.base), config.model.compose, config.training.seed, say)
        check_plan(config, trust_remote_code=trust)
        read.append(read_sources(config))  # by one process first: the others find it in the cache of `datasets`
        facts |= facts_of(config, read[0], processes)
        if before is not None:
            check_changes(config, before, facts, allow_changes, say)
        return checkpoint, before, facts

    checkpoint, before, facts = processes.main_makes(begin)
    with processes.together():
        sources = read[0] if read else read_sources(config)
        budget = config.data.image_tokens
        processor = load_processor(config.base, trust_remote_code=trust, image_tokens=budget)
        family = family_of(processor)
        rows = rows_of(sources, family, config, processes)
        evaluation = held_out_of(sources, family, config)
        set_seed(config.training.seed)
        model, _ = load(config.base, dtype=config.model.dtype, trust_remote_code=trust, image_tokens=budget)
        plan = inject(model, config.adapt)
        if config.training.precision == "bf16":
            for _, parameter, _, _ in trainable_parameters(model):
                parameter.data = parameter.data.float()  # small updates vanish in bf16; autocast computes in bf16
        held_out = list(evaluation.values()) if isinstance(evaluation, dict) else [evaluation] if evaluation else []
        features = features_of(config, model, family, [rows, *held_out], processes)
    with processes.together():  # now that each has put its share of the features
        collate: Any = partial(family.batch, features=features) if features else family.batch
        if config.data.packing:
            assert config.data.max_length is not None and isinstance(rows, Rows)
            packs, collate = Packs(rows, config.data.max_length, config.training.seed), PackedCollator(family, model)
            check_packing(model.to(arguments.device), collate, packs, bf16=config.training.precision == "bf16")
        if processes.count > 1 and not processes.sharded:
            if isinstance(rows, Stream):
                arguments.ddp_find_unused_parameters = True  # which rows will come is not known
            else:
                _tell_ddp(arguments, unreached(model.to(arguments.device), collate, packs or rows), say)
    facts |= {"base": plan.fingerprint, "plan": str(plan)}

    def explain(done: dict[str, Any] | None) -> None:
        text = readme(config, str(plan), describe(rows, packs, config), [Path(sys.argv[0]).name, *sys.argv[1:]], done)
        _replace(output / README, lambda path: path.write_text(text, encoding="utf-8"))

    def open_folder() -> None:
        if before is not None:
            check_changes(config, before, facts, allow_changes, say)
        say(str(plan))
        say(describe(rows, packs, config))
        for note in family.end_notes(model.generation_config):
            say(f"note: {note}")
        output.mkdir(parents=True, exist_ok=True)
        (output / DONE).unlink(missing_ok=True)
        shutil.rmtree(output / STAGING, ignore_errors=True)  # of a save that was killed
        _replace(output / CONFIG, config.save)
        (output / PLAN).write_text(f"{plan}\n", encoding="utf-8")
        explain(None)

    processes.main_makes(open_folder)
    per_step = config.training.batch_size * config.training.accumulation * processes.count
    stop, log = StopRequest(processes), RunLog(output / LOG, per_step)
    with processes.together():
        ends = EarlyStopping(config.training.early_stopping or 0, metric(config))
        trainer = AdapterTrainer(
            config,
            packs or rows,
            facts,
            processes,
            answers_of(sources, processor, config),
            model=model,
            args=arguments,
            data_collator=collate,
            eval_dataset=evaluation,
            callbacks=[
                stop,
                *([log, *reporters(config)] if processes.main else []),
                *([ends] if config.training.early_stopping else []),
            ],
        )
    if not isinstance(rows, Stream):  # whose length is not known
        log.rows_per_step = len(rows) / trainer.steps_per_epoch
    if not processes.main:
        set_seed(config.training.seed + processes.index)  # else all would drop out the same
    started = time.monotonic()
    steps = config.training.steps or math.ceil(config.training.epochs * trainer.steps_per_epoch)
    if checkpoint is not None and (steps_done(checkpoint) >= steps or _stopped_early(checkpoint, config, ends)):
        restore_adapter(model, best_of(checkpoint) or checkpoint)  # stopped between the last step and the end
        trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    else:
        with stop.listening(), closing(log):
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except UnpicklingError:
                raise MmdoraError(
                    f"{checkpoint}: optimizer.pt, scheduler.pt or rng_state.pth holds what is no plain data, and was "
                    "not read further; go on from an earlier checkpoint, or start anew"
                ) from None
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                limit = trainer.pieces.limit if trainer.pieces else config.training.batch_size
                found = estimated(config, processor, trainer.micro_batch, trust_remote_code=trust)
                line = out_of_memory(trainer.state.global_step + 1, limit, config.training, found)
                line.told = isinstance(error, OutOfMemory) and not processes.main  # which all processes raise
                raise line from None
        if stop.signal is not None and trainer.state.global_step < trainer.state.max_steps:
            step = trainer.state.global_step
            stopped = Interrupted(
                f"{stop.signal.name}: stopped after step {step} of {trainer.state.max_steps}; saved as "
                f"{output / f'checkpoint-{step}'}; go on with --resume",
                128 + stop.signal,
            )
            stopped.told = not processes.main
            raise stopped
    seconds = time.monotonic() - started
    with processes.together():
        trainer.check_finite()

    trainer.write_adapter(output / "adapter")

    def end() -> None:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        done = {
            "steps": trainer.state.global_step,
            "seconds": round(seconds, 1),
            "resumed": checkpoint is not None,
            "final_loss": losses[-1] if losses else None,
            f"best_{metric(config)}": trainer.state.best_metric,
            "trainable": plan.trainable,
            "device": str(trainer.args.device),
            "processes": processes.count,
            "threads": torch.get_num_threads(),
        }
        explain(done)
        _replace(output / DONE, lambda path: path.write_text(json.dumps(done, indent=2), encoding="utf-8"))

    processes.main_makes(end)
    return output


def _tell_ddp(arguments: TrainingArguments, missing: dict[str, list[str]], say: Callable[[str], None]) -> None:
    """DDP waits for the gradient of each trained parameter, unless it looks which will come: a walk of the graph and
    4 bytes per tensor more a step. Without need it complains.

    Where it does not look, it lays out anew after the first step what it reduces. A sum of three or more numbers
    depends on the place in that layout, so that a resumed run would differ in its last bits: there it always looks.
    """
    arguments.ddp_find_unused_parameters = arguments.world_size > 2 or any(missing.values())
    if never := sorted(set.intersection(*map(set, missing.values()))):
        say(f"note: {len(never)} trained tensors get no gradient, as nothing behind them is read: {never[0]}, …")


def _silent(line: str) -> None:
    """`say` of a process that is not the main one."""


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the file, then rename over it: a kill leaves the old one or the new one."""
    beside = path.with_name(f".{path.name}.tmp")
    write(beside)
    os.replace(beside, path)


def _check_schedule(config: RunConfig) -> None:
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
    if training.eval_every and training.save_every and training.save_every % training.eval_every:
        raise MmdoraError(
            f"training.save_every {training.save_every} must be a multiple of training.eval_every {training.eval_every}"
            " (the best checkpoint is chosen among the saved ones)"
        )


def _stopped_early(checkpoint: Path, config: RunConfig, ends: EarlyStopping) -> bool:
    if config.training.early_stopping is None:
        return False
    return ends.exhausted(TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).log_history)
