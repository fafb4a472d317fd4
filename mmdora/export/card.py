"""The README.md of an exported checkpoint: what it is, what it was made from, how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from mmdora.config import MODALITIES, RunConfig
from mmdora.version import __version__

_LOAD = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")
content = [{{"type": "image", "path": "photo.jpg"}}, {{"type": "text", "text": "What is in the picture?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device, model.dtype)
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
```"""


def card(
    base: Path,
    *,
    name: str,
    dtype: str,
    parity: Any,
    base_name: str,
    plan: Any = None,
    config: RunConfig | None = None,
    scores: Mapping[str, Any] | None = None,
) -> str:
    """Markdown with the hub's metadata as front matter.

    Args:
        base: folder with the base's files; its README.md tells the licence.
        name: of the exported folder, for the title and the example.
        plan: the plan that was merged (its `str` is the table), or None for a plain checkpoint.
    """
    shown = Path(base_name).name if Path(base_name).exists() else base_name
    methods = sorted({entry.method for entry in plan.entries} | ({"full"} if plan.full else set())) if plan else []
    licence = _licence(base)
    data = ModelCardData(
        base_model=base_name if _is_hub_id(base_name) else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        license=licence or "other",
        tags=["mmdora", *methods],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {name}",
        f"`{shown}`"
        + (f", adapted with {', '.join(methods)} and merged" if methods else "")
        + f", by mmdora {__version__}. Weights: {dtype}.",
        f"## Load it\n\n{_LOAD.format(name=name)}",
    ]
    if plan:
        parts.append(f"## What was adapted\n\n```\n{plan}\n```")
    if config:
        parts.append(_training(config))
    if scores:
        rows = "\n".join(f"| {key} | {_shown(value)} |" for key, value in scores.items())
        parts.append(f"## Scores\n\n| | |\n|---|---|\n{rows}")
    parts.append(
        f"## Parity\n\nMerged in fp32 and rounded once. {parity.how}, before this folder got its name: {parity}."
    )
    parts.append(
        "## Licence\n\n"
        + (f"The base states `{licence}`. " if licence else "The base states no licence here. ")
        + "Its terms hold for these weights too, and so may those of the training data."
    )
    text = "\n\n".join(parts) + "\n"
    return str(ModelCard(text))


def _training(config: RunConfig) -> str:
    """Data and settings of the run; the config as YAML is enough to repeat it."""
    settings = config.to_dict()
    del settings["training"]["output"]
    unused = [key for key in MODALITIES if settings["adapt"][key]["method"] == "none"]
    for key in unused:
        settings["adapt"][key] = {"method": "none"}
    text = yaml.safe_dump(settings, sort_keys=False)
    data = ", ".join(f"`{source.train}`" for source in config.data.sources.values()) or "not stated"
    return f"## Training\n\nData: {data}.\n\n```yaml\n{text}```"


def _licence(base: Path) -> str | None:
    try:
        return ModelCard.load(base / "README.md").data.to_dict().get("license")
    except (OSError, ValueError):
        return None


def _is_hub_id(name: str) -> bool:
    return not Path(name).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _shown(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) and 0 <= value <= 1 else str(value)
