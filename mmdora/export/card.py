"""Writes the README.md of an exported checkpoint: its description, its origin, and how to load it."""

from __future__ import annotations

import re

import yaml
from huggingface_hub import ModelCard, ModelCardData

from mmdora.adapter_files.files import OURS
from mmdora.export.facts import ExportFacts


def card(facts: ExportFacts, load: str, *, sees: bool = True) -> str:
    """The card as Markdown, with the hub's metadata as front matter.

    Args:
        load: Python code that loads the checkpoint and asks it a question.
        sees: whether the model reads pictures.
    """
    methods, licence = facts.methods, facts.licence
    data = ModelCardData(
        base_model=facts.base if re.fullmatch(r"[\w.-]+/[\w.-]+", facts.base) else None,  # It has to be a hub id.
        library_name="transformers",
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        license=licence or "other",
        datasets=(facts.run or {}).get("datasets") or None,
        tags=["mmdora", *methods],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {facts.name}",
        f"`{facts.base}`"
        + (f", adapted with {', '.join(methods)} and merged" if methods else "")
        + f", by mmdora {facts.versions['mmdora']}. Weights: {facts.dtype}.",
        f"## Load it\n\n```python\n{load}\n```",
    ]
    if facts.plan:
        parts.append(f"## What was adapted\n\n```\n{facts.plan}\n```")
    if facts.run:
        files = ", ".join(f"`{file}`" for file in facts.run["data"]) or "not stated"
        config = yaml.safe_dump(dict(facts.run["config"]), sort_keys=False)
        parts.append(f"## Training\n\nData: {files}. Settings that are not the defaults:\n\n```yaml\n{config}```")
    if facts.scores:
        rows = "\n".join(f"| {key} | {value} |" for key, value in facts.shown_scores.items())
        parts.append(f"## Scores\n\n| | |\n|---|---|\n{rows}")
    parts.append(
        f"## Parity\n\nMerged in fp32 and rounded once. {facts.parity['how']}, before this folder got its name: "
        f"{facts.parity['text']}."
    )
    parts.append(
        "## Licence\n\n"
        + (f"The base states `{licence}`. " if licence else "The base states no licence here. ")
        + "Its terms hold for these weights too, and so may those of the training data."
    )
    parts.append(f"`{OURS}` holds the same for programs.")
    return str(ModelCard("\n\n".join(parts) + "\n"))
