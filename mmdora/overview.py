"""What a config would do to a model, before it does: parts, plan, memory, and one batch with its loss mask."""

from __future__ import annotations

from collections.abc import Iterator
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
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mmdora.config import MODALITIES, RunConfig
from mmdora.data.collate import Collator
from mmdora.data.fit import fit
from mmdora.data.prompt import IGNORE
from mmdora.data.records import read_records
from mmdora.errors import MmdoraError
from mmdora.injectors import Plan, make_plan
from mmdora.modality import Parts, find_parts
from mmdora.models.load import adapter_folder, bundled, resolve

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
SHOWN_ROWS = 3


def show_model(name: str, config: RunConfig | None = None, console: Console | None = None) -> None:
    """Print the module tree by modality; with a config also its plan and the memory it takes.

    Raises:
        MmdoraError: no such model, no parts found, or a config that does not fit it.
    """
    console = console or Console()
    model = skeleton(name)
    plan = make_plan(model, config.adapt) if config else None
    console.print(module_tree(model, plan.parts if plan else find_parts(model), plan))
    if config is None or plan is None:
        console.print("\nWhat would be trained: give a config, as in --config configs/tiny/dora.yaml")
        return
    console.print(f"\n{plan}\n", markup=False, highlight=False)
    console.print(memory_table(model, plan, config))


def skeleton(name: str) -> Any:
    """The model `name` with its shapes and no memory (each parameter is one expanded zero); reads its config only."""
    if adapter_folder(name) is not None:
        raise MmdoraError(f"{name}: is an adapter; inspect its base, or read the plan.txt of its run")
    try:
        config = AutoConfig.from_pretrained(resolve(name))
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise MmdoraError(
            f"model {name!r}: not a folder, a hub id or one of {', '.join(bundled())}: {reason}"
        ) from None
    zeros: dict[int, nn.Parameter] = {}  # by identity, so that tied parameters stay tied
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            zero = nn.Parameter(torch.zeros((), dtype=parameter.dtype).expand(parameter.shape), requires_grad=False)
            setattr(module, leaf, zeros.setdefault(id(parameter), zero))
    return model


def module_tree(model: nn.Module, parts: Parts, plan: Plan | None = None) -> Tree:
    """The model's parts as a tree; repeated blocks are drawn once, planned modules carry their method."""
    marks: dict[str, str] = {}
    if plan is not None:
        marks |= {
            entry.name: f"{entry.method} r {entry.rank}" if entry.rank else entry.method for entry in plan.entries
        }
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
    branch: Tree, label: str, path: str, module: nn.Module, parts: Parts, modality: str, marks: dict[str, str]
) -> None:
    direct = {
        marks[f"{path}.{leaf}"] for leaf, _ in module.named_parameters(recurse=False) if f"{path}.{leaf}" in marks
    }
    mark = marks.get(path) or next(iter(direct), None)
    node = branch.add(f"{escape(label)}  [dim]{type(module).__name__}[/]  {_count(module)}{_mark(mark)}")
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
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def _mark(mark: str | None) -> str:
    return f"  [bold green]← {mark}[/]" if mark else ""


def memory_table(model: Any, plan: Plan, config: RunConfig) -> Table:
    """Memory of a training step on one device. Weights, gradients and AdamW's two moments are counted."""
    full, added = sum(plan.full_sizes.values()), sum(entry.parameters for entry in plan.entries)
    frozen = sum(plan.base_sizes.values()) - full
    activations, tokens = estimate_activations(model, plan, config)
    rows = [
        ("frozen weights", frozen * BYTES[config.model.dtype], f"{frozen:,} in {config.model.dtype}"),
        ("trained weights", 4 * (full + added), f"{full + added:,} in fp32"),
        ("gradients", 4 * (full + added), "fp32"),
        ("AdamW moments", 8 * (full + added), "two, fp32"),
        ("activations (rough)", activations, f"{config.training.batch_size} rows of {tokens:,} tokens"),
    ]
    table = Table(title="Estimated memory of a training step", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("MiB", justify="right")
    table.add_column("")
    for name, size, note in [*rows, ("sum", sum(size for _, size, _ in rows), "")]:
        table.add_row(name, f"{size / 2**20:,.1f}", note)
    return table


def estimate_activations(model: Any, plan: Plan, config: RunConfig) -> tuple[int, int]:
    """Rough bytes kept for the backward pass, and the tokens per row assumed.

    34 s b h bytes per layer at 16 bits (Korthikanti et al. 2022, eq. 1, attention scores left out, as
    fused attention recomputes them), 2 s b h with gradient checkpointing, and the logits in fp32 twice.
    A tower keeps nothing when neither it nor anything before it trains.
    """
    text = model.config.get_text_config()
    vision: Any = getattr(model.config, "vision_config", None)
    image, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    patches = (image // patch) ** 2 if isinstance(image, int) and isinstance(patch, int) else 0
    tokens = config.data.max_length or (getattr(model.config, "image_seq_length", None) or patches) + 128
    precision = 2 if config.training.precision == "bf16" or config.model.dtype != "fp32" else 4
    per_value = precision * (1 if config.training.gradient_checkpointing else 17)
    trains = {row.modality: row.trainable > 0 for row in plan.by_modality()}
    size = 0
    if trains["vision"] and patches:
        size += patches * vision.hidden_size * vision.num_hidden_layers * per_value
    size += tokens * text.hidden_size * text.num_hidden_layers * per_value + tokens * text.vocab_size * 8
    return size * config.training.batch_size, tokens


def show_batch(config: RunConfig, console: Console | None = None) -> None:
    """Print the plan and the first batch, decoded, with the tokens that get loss marked; nothing is trained."""
    console = console or Console()
    if config.data.train is None:
        raise MmdoraError("data.train: give the file of records to train on")
    records = read_records(config.data.train, config.data.images, max_turns=config.data.max_turns)
    plan = make_plan(skeleton(config.model.base), config.adapt)
    processor = AutoProcessor.from_pretrained(resolve(config.model.base))
    rows = fit(records, processor, config.data.max_length, config.data.too_long)
    chosen = list(islice((rows[i] for i in range(len(rows))), config.training.batch_size))
    batch = Collator(processor, records.root)(chosen)
    console.print(f"{plan}\n", markup=False, highlight=False)
    counted, scored = int(batch["attention_mask"].sum()), int((batch["labels"] != IGNORE).sum())
    shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in batch.items())
    console.print(f"first {len(chosen)} of {len(rows):,} rows: {shapes}", markup=False, highlight=False)
    console.print(f"{scored:,} of {counted:,} tokens get loss, marked ⟦so⟧\n", markup=False, highlight=False)
    for index, row in enumerate(chosen[:SHOWN_ROWS]):
        console.print(Text.assemble((f"{row['id']}: ", "dim"), *_spans(processor, batch, index)), "")
    console.print(f"nothing was trained; run folder would be {Path(config.training.output)}")


def _spans(processor: Any, batch: dict[str, torch.Tensor], row: int) -> Iterator[tuple[str, str]]:
    """(text, style) of runs of tokens: image tokens counted, tokens with loss marked."""
    image = getattr(processor, "image_token_id", None)
    tokens = [
        (int(token), int(label) != IGNORE, int(token) == image)
        for token, label, seen in zip(
            batch["input_ids"][row], batch["labels"][row], batch["attention_mask"][row], strict=True
        )
        if seen
    ]
    for (loss, is_image), run in groupby(tokens, key=lambda token: token[1:]):
        ids = [token[0] for token in run]
        if is_image:
            yield f"{processor.image_token} × {len(ids)}", "cyan"
        else:
            text = processor.tokenizer.decode(ids)
            yield (f"⟦{text}⟧", "bold green") if loss else (text, "")
