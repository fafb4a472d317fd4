"""Writes the README.md of an exported checkpoint or an adapter alone: how to load it, its origin, its scores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from mmdora.adapter_files.files import OURS
from mmdora.export.facts import ExportFacts


def card(facts: ExportFacts, load: str, *, sees: bool = True) -> str:
    """The card of a checkpoint as Markdown, with the hub's metadata as front matter.

    Args:
        load: Python code that loads the checkpoint and asks it a question.
        sees: whether the model reads pictures.
    """
    methods = facts.methods
    what = f"`{facts.base}`" + (f", adapted with {', '.join(methods)} and merged" if methods else "")
    parity = (
        f"## Parity\n\nMerged in fp32 and rounded once. {facts.parity['how']}, before this folder got its name: "
        f"{facts.parity['text']}."
    )
    parts = [_head(facts, sees, "transformers"), _said(facts, what), f"## Load it\n\n```python\n{load}\n```"]
    return _text([*parts, *_origin(facts), parity, _licence(facts), f"`{OURS}` holds the same for programs."])


def adapter_card(facts: ExportFacts, load: str, *, sees: bool = True, serve: str | None = None) -> str:
    """The card of an adapter alone; the other arguments are those of `card`.

    Args:
        serve: the command by which vLLM serves it, if it was written for that.
    """
    how = f"## Load it\n\n```python\n{load}\n```"
    if serve is not None:
        how += (
            "\n\nEvery module has the same rank here, and its scaling is folded into B, so that vLLM serves it over "
            f"its base:\n\n```\n{serve}\n```"
        )
    what = f"An adapter ({', '.join(facts.methods)}) of `{facts.base}`, in PEFT's format, to be loaded onto it"
    return _text([_head(facts, sees, "peft"), _said(facts, what), how, *_origin(facts), _licence(facts)])


def _head(facts: ExportFacts, sees: bool, library: str) -> str:
    # It has to be a hub id. An adapter belongs on its own base, and a merged model comes from the root of its lineage.
    name = facts.base if library == "peft" else facts.root
    base = name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None
    relation: dict[str, Any] = {"base_model_relation": "adapter"} if base and library == "peft" else {}
    data = ModelCardData(
        base_model=base,
        library_name=library,
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        license=facts.licence or "other",
        datasets=(facts.run or {}).get("datasets") or None,
        tags=["mmdora", *facts.methods],
        **relation,
    )
    return f"---\n{data.to_yaml()}\n---\n\n# {facts.name}"


def _said(facts: ExportFacts, what: str) -> str:
    return f"{what}, by mmdora {facts.versions['mmdora']}. Weights: {facts.dtype}."


def _origin(facts: ExportFacts) -> list[str]:
    """What was adapted, on what, and how well it does, as far as this is known."""
    parts = []
    if facts.lineage:
        steps = [f"- `{step['name']}`: {_step(step)}" for step in (*facts.lineage, facts.step)]
        parts.append("## Lineage\n\nThe base was itself adapted before; the oldest first.\n\n" + "\n".join(steps))
    if facts.plan:
        parts.append(f"## What was adapted\n\n```\n{facts.plan}\n```")
    if facts.run:
        files = ", ".join(f"`{file}`" for file in facts.run["data"]) or "not stated"
        config = yaml.safe_dump(dict(facts.run["config"]), sort_keys=False)
        parts.append(f"## Training\n\nData: {files}. Settings that are not the defaults:\n\n```yaml\n{config}```")
    if facts.scores:
        rows = "\n".join(f"| {key} | {value} |" for key, value in facts.shown_scores.items())
        parts.append(f"## Scores\n\n| | |\n|---|---|\n{rows}")
    return parts


def _licence(facts: ExportFacts) -> str:
    stated = f"The base states `{facts.licence}`. " if facts.licence else "The base states no licence here. "
    return f"## Licence\n\n{stated}Its terms hold for these weights too, and so may those of the training data."


def _text(parts: list[str]) -> str:
    return str(ModelCard("\n\n".join(parts) + "\n"))


def _step(step: Mapping[str, Any]) -> str:
    data = ", ".join(f"`{file}`" for file in step["data"])
    how = f"adapted with {', '.join(step['methods'])}" if step["methods"] else "not adapted"
    return f"`{step['base']}`, {how}" + (f" on {data}" if data else "")
