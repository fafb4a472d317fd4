"""Shows what a config would do, without training: parts, plan, memory, and one batch with its loss mask."""

from __future__ import annotations

from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from torch import nn

from mmdora.adapt.inject import make_plan
from mmdora.adapt.modality import ModelParts, find_parts
from mmdora.adapt.plan import Plan
from mmdora.batches.fit import fit
from mmdora.batches.shards import Shards, rows_of
from mmdora.batches.stream import admit
from mmdora.batches.survey import drawing, survey
from mmdora.config import MODALITIES, RunConfig
from mmdora.errors import MmdoraError
from mmdora.families import IGNORE, Family, family_of
from mmdora.families.boxes import boxed
from mmdora.layers import AdaptedExpertWeight
from mmdora.layers.dequantize import form_of, sizes
from mmdora.models.base import skeleton_of
from mmdora.models.chat_template import template_of
from mmdora.models.image_tokens import set_image_tokens
from mmdora.models.load import check_base, load_generation_config
from mmdora.records.reader import read_records
from mmdora.records.row import changed
from mmdora.train.memory import Estimate, estimate, typical_batch
from mmdora.train.spread import ALONE, Spread, check_sharded, per_device

SHOWN_ROWS = 3  # The most rows of the first batch that are printed.


def show_model(
    name: str,
    config: RunConfig | None = None,
    console: Console | None = None,
    *,
    trust_remote_code: bool = False,
    spread: Spread = ALONE,
) -> None:
    """Print the module tree by modality; with a config also the plan and the memory that training needs.

    Args:
        spread: over how many devices the training is spread, and how.

    Raises:
        MmdoraError: if there is no such model, its parts cannot be found, or the config does not fit it.
    """
    console = console or Console()
    model = skeleton_of(config, name, trust_remote_code=trust_remote_code)
    processor = _processor(name, config or RunConfig(), trust_remote_code)
    plan = make_plan(model, config.adapt) if config else None
    console.print(module_tree(model, plan.parts if plan else find_parts(model), plan))
    if config is None or plan is None:
        console.print("\nWhat would be trained: give a config, as in --config configs/tiny/dora.yaml")
        return
    console.print(f"\n{plan}\n", markup=False, highlight=False)
    if spread.processes > 1 and spread.strategy != "ddp":
        check_sharded(config)
    batch = typical_batch(family_of(processor), config)
    alone = estimate(model, plan, config, batch)
    console.print(memory_table(per_device(alone, model, config, spread), config, spread))


def show_data(
    name: str,
    data: Path,
    images: Path | None = None,
    config: RunConfig | None = None,
    console: Console | None = None,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Print lengths, image tokens and padding of records, in tokens of a model whose weights are not loaded.

    Raises:
        MmdoraError: if there is no such model or file, or an image cannot be read.
    """
    config, console = config or RunConfig(), console or Console()
    processor = _processor(name, config, trust_remote_code)
    records = read_records(data, images or config.data.images, max_turns=config.data.max_turns)
    records = boxed(processor, records, config.data.boxes)
    console.print(drawing(survey(records, family_of(processor), config)), highlight=False)


def _processor(name: str, config: RunConfig, trust_remote_code: bool) -> Any:
    """The processor of a base, as training by this config has it, after a check that it fits the model."""
    processor = check_base(name, trust_remote_code=trust_remote_code, template=template_of(config.data))
    set_image_tokens(processor, config.data.image_tokens)
    return processor


def module_tree(model: nn.Module, parts: ModelParts, plan: Plan | None = None) -> Tree:
    """The model's parts as a tree. Repeated blocks are drawn once, and modules in the plan show their method."""
    marks: dict[str, str] = {}
    if plan is not None:
        for entry in plan.entries:
            # Adapters of experts are on parameters, and the tree shows modules.
            name = entry.weight if entry.kind == AdaptedExpertWeight.kind else entry.name
            marks[name] = f"{entry.method} r {entry.rank}" if entry.rank else entry.method
        marks |= dict.fromkeys(plan.full, "full")
    root = Tree(f"[bold]{type(model).__name__}[/]  {_count(model)}")
    for modality in MODALITIES:
        branch = root.add(f"[bold cyan]{modality}[/]")
        for prefix in getattr(parts, modality):
            part = _find(model, prefix)
            if isinstance(part, nn.Module):
                _draw(branch, prefix, prefix, part, parts, modality, marks)
            else:
                branch.add(f"{prefix}  [dim]parameter[/]  {part.numel():,}{_mark(marks.get(prefix))}")
    return root


def _draw(
    branch: Tree, label: str, path: str, module: nn.Module, parts: ModelParts, modality: str, marks: dict[str, str]
) -> None:
    direct = {
        marks[f"{path}.{leaf}"] for leaf, _ in module.named_parameters(recurse=False) if f"{path}.{leaf}" in marks
    }
    mark = marks.get(path) or next(iter(direct), None)
    node = branch.add(f"{escape(label)}  [dim]{type(module).__name__}{_form(module)}[/]  {_count(module)}{_mark(mark)}")
    children = [
        (f"{path}.{leaf}", child) for leaf, child in module.named_children() if any(True for _ in child.parameters())
    ]
    mine = [(name, child) for name, child in children if parts.of(name) == modality]
    for _, same in groupby(mine, key=lambda pair: _signature(*pair, marks)):
        run = list(same)
        first, last = (name.rpartition(".")[2] for name in (run[0][0], run[-1][0]))
        repeated = len(run) > 1 and first.isdigit()
        for name, child in run[:1] if repeated else run:
            title = f"{first} … {last}  ({len(run)} alike, one shown)" if repeated else name.rpartition(".")[2]
            _draw(node, title, name, child, parts, modality, marks)


def _signature(path: str, module: nn.Module, marks: dict[str, str]) -> tuple[Any, ...]:
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())
    inside = tuple((name.removeprefix(path), mark) for name, mark in marks.items() if name.startswith(f"{path}."))
    return type(module), shapes, inside


def _find(model: nn.Module, name: str) -> nn.Module | torch.Tensor:
    modules = dict(model.named_modules())
    return modules[name] if name in modules else model.get_parameter(name)


def _count(module: nn.Module) -> str:
    return f"{sum(sizes(module).values()):,}"


def _form(module: nn.Module) -> str:
    form = form_of(module)
    return "" if form is None else f", {form}"


def _mark(mark: str | None) -> str:
    return f"  [bold green]← {mark}[/]" if mark else ""


def memory_table(memory: Estimate, config: RunConfig, spread: Spread = ALONE) -> Table:
    """A table of the memory at the peak of a training step on one device, by modality."""
    rows = [
        (f"frozen weights, {_shown_dtype(config)}", memory.frozen),
        ("trained weights", memory.trained),
        ("gradients", memory.gradients),
        ("moments of the optimizer", memory.moments),
        ("activations", memory.activations),
        ("buffers of backward", {"other": memory.buffers}),
    ]
    of_all = ("gathered weights", memory.gathered), ("sent gradients", memory.sent)
    rows += [(name, {"other": size}) for name, size in of_all if size]
    where = f" on {spread}" if spread.processes > 1 else ""
    title = f"Memory at the peak of a training step{where}, MiB: {memory.rows} rows of {memory.tokens:,} tokens"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("", *MODALITIES, "other", "sum"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, held in rows:
        table.add_row(name, *(_mib(held.get(m, 0)) for m in (*MODALITIES, "other")), _mib(sum(held.values())))
    table.add_row("sum", *[""] * (len(MODALITIES) + 1), _mib(memory.peak), style="bold")
    return table


def _shown_dtype(config: RunConfig) -> str:
    own = config.model.quantize
    return config.model.dtype if own is None else f"{own.type} and {config.model.dtype}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}" if size else ""


def show_batch(config: RunConfig, console: Console | None = None, *, trust_remote_code: bool = False) -> None:
    """Print the plan and the first batch as text, with marks around the tokens that are learned; nothing is trained."""
    console = console or Console()
    data = config.data
    if not data.sources:
        raise MmdoraError("data.train: give the file of records to train on")
    if config.model.compose is not None:
        from mmdora.models.llava.compose import compose_into  # Only a composed base needs this.

        compose_into(Path(config.base), config.model.compose, config.training.seed, console.print)
    family = family_of(_processor(config.base, config, trust_remote_code))
    model = skeleton_of(config, trust_remote_code=trust_remote_code)
    plan = make_plan(model, config.adapt)
    console.print(f"{plan}\n", markup=False, highlight=False)
    for note in family.notes(load_generation_config(config.base)):
        console.print(f"note: {note}", highlight=False, markup=False)
    for task, source in data.sources.items():
        if data.stream:
            shards = Shards(source.train, source.images)
            admitted = partial(admit, family=family, data=data, apart=())
            rows_left, whole = (
                filter(None, map(admitted, rows_of(shards.files, shards.root, data.max_turns))),
                "a stream's",
            )
        else:
            records = read_records(source.train, source.images, max_turns=data.max_turns)
            rows = fit(records, family, data.max_length, data.too_long, data.boxes)
            rows_left, whole = (changed(rows[i], task=task or None) for i in range(len(rows))), f"{len(rows):,}"
        chosen = list(islice(rows_left, config.training.batch_size))
        console.print(f"{task}: " if task else "", end="")
        _show(chosen, whole, family.batch(chosen), family, console)
    console.print(f"nothing was trained; run folder would be {Path(config.training.output)}")


STYLES = {"text": "", "image": "cyan", "learned": "bold green"}


def _show(chosen: list[Any], whole: str, batch: dict[str, torch.Tensor], family: Family, console: Console) -> None:
    counted, scored = family.counted(batch), int((batch["labels"] != IGNORE).sum())
    shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in batch.items())
    console.print(f"first {len(chosen)} of {whole} rows: {shapes}", markup=False, highlight=False)
    console.print(f"{scored:,} of {counted:,} tokens get loss, marked ⟦so⟧\n", markup=False, highlight=False)
    for index, row in enumerate(chosen[:SHOWN_ROWS]):
        spans = [
            (f"⟦{text}⟧" if kind == "learned" else text, STYLES[kind]) for text, kind in family.shown(batch, index)
        ]
        console.print(Text.assemble((f"{row['id']}: ", "dim"), *spans), "")
