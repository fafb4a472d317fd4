"""Loads the model and the data of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed

from mmdora.adapt.inject import Plan, trainable_parameters
from mmdora.adapter_files.warm_start import inject
from mmdora.batches.fit import Rows
from mmdora.batches.packing import PackedCollator, Packs
from mmdora.batches.stream import Stream
from mmdora.batches.tasks import TaskRows
from mmdora.config import RunConfig
from mmdora.families import Family, family_of
from mmdora.models.chat_template import template_of
from mmdora.models.load import load, load_processor
from mmdora.models.quantize import NONE
from mmdora.train.early_stopping import Answers
from mmdora.train.features import features_of
from mmdora.train.packing import check_packing
from mmdora.train.processes import Processes
from mmdora.train.ranks import Ranks, ranks_for
from mmdora.train.reach import unreached
from mmdora.train.sources import Sources, answers_of, held_out_of, rows_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Loaded:
    """Model and data of a run.

    Attributes:
        rows: rows to learn.
        packs: the same rows as packed rows; None without `data.packing`.
        collate: function that makes a batch of a list of rows.
        held_out: rows to evaluate on; with several tasks, name of a task -> its rows; None if nothing is evaluated.
        answers: prefix of metrics -> records that are answered at each evaluation.
        ranks: the ranks of `adapt.rank: auto`; None without it.
    """

    model: Any
    processor: Any
    family: Family
    plan: Plan
    rows: Rows | TaskRows | Stream
    packs: Packs | None
    collate: Callable[[list[Any]], dict[str, Any]]
    held_out: Any
    answers: Mapping[str, Answers]
    ranks: Ranks | None


def load_all(
    config: RunConfig, sources: Sources, processes: Processes, trust: bool, say: Say, checkpoint: Path | None = None
) -> Loaded:
    """Load the base, adapt it, and prepare its data. Every process does this.

    Args:
        checkpoint: the checkpoint that the run goes on from.

    Raises:
        MmdoraError: if model, data and config do not fit together.
    """
    with processes.together():
        budget, training, template = config.data.image_tokens, config.training, template_of(config.data)
        processor = load_processor(config.base, trust_remote_code=trust, image_tokens=budget, template=template)
        family = family_of(processor)
        rows = rows_of(sources, family, config, processes)
        held_out = held_out_of(sources, family, config)
        set_seed(training.seed)
        model, _ = load(
            config.base,
            dtype=config.model.dtype,
            trust_remote_code=trust,
            image_tokens=budget,
            template=template,
            quantize=config.quantize or NONE,
            dequantize=bool(config.model.dequantize),
            device=processes.device if config.quantize else None,
        )
    ranks = ranks_for(config, model, family, rows, processes, checkpoint)
    with processes.together():
        if ranks is not None:
            set_seed(training.seed)  # Measuring has drawn random numbers, and no other process has.
        plan = inject(model, config.adapt, ranks=None if ranks is None else ranks.of_modules)
        if training.precision == "bf16":
            for _, parameter, _, _ in trainable_parameters(model):
                # Autocast computes in bf16, but parameters stay in fp32, because small updates would vanish in bf16.
                parameter.data = parameter.data.float()
        evaluated = list(held_out.values()) if isinstance(held_out, dict) else [held_out] if held_out else []
        features = features_of(config, model, family, [rows, *evaluated], processes)
    # By now every process has filled in its share of the features. The model is tried below, and `prepare` has not yet
    # put the run's autocast around its forward.
    with processes.together(), processes.accelerator.autocast():
        collate: Any = partial(family.batch, features=features) if features else family.batch
        packs = None
        if config.data.packing:
            assert config.data.max_length is not None and isinstance(rows, Rows)
            packs, collate = Packs(rows, config.data.max_length, training.seed), PackedCollator(family, model)
            check_packing(model.to(processes.device), collate, packs)
        if processes.count > 1 and not processes.sharded:
            _tell_ddp(processes, model, collate, packs or rows, say)
        answers = answers_of(sources, processor, config)
    return Loaded(
        model=model,
        processor=processor,
        family=family,
        plan=plan,
        rows=rows,
        packs=packs,
        collate=collate,
        held_out=held_out,
        answers=answers,
        ranks=ranks,
    )


def _tell_ddp(processes: Processes, model: Any, collate: Any, rows: Any, say: Say) -> None:
    """Tell DDP whether to look for parameters without a gradient (`find_unused_parameters`).

    With `find_unused_parameters` off, DDP waits for the gradient of every trained parameter. With it on, each step
    costs a walk through the graph and 4 bytes per tensor, and DDP warns if that was not needed. It is on if some
    kind of row gives some parameter no gradient, and for a stream, whose rows are not known beforehand.

    It is also on with more than two processes. With it off, DDP changes the layout of its buckets after the first step,
    and with three or more processes the last bits of a sum depend on that layout, so a resumed run would differ in
    them.
    """
    looks = True
    if not isinstance(rows, Stream):
        missing = unreached(model.to(processes.device), collate, rows)
        looks = processes.count > 2 or any(missing.values())
        if never := sorted(set.intersection(*map(set, missing.values()))):
            say(f"note: {len(never)} trained tensors get no gradient, as nothing behind them is read: {never[0]}, …")
    ddp: Any = processes.accelerator.ddp_handler
    ddp.find_unused_parameters = looks
