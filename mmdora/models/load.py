"""Opening models: a bundled name, a hub id, a checkpoint folder, an adapter or a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from mmdora.adapters import CONFIG, OURS, WEIGHTS, load_adapter
from mmdora.errors import MmdoraError

ASSETS = Path(__file__).parent.parent / "assets"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def bundled() -> tuple[str, ...]:
    """Names of the bases that this package carries."""
    return tuple(sorted(folder.parent.name for folder in ASSETS.glob("*/config.json")))


def resolve(name: str) -> str:
    """The folder of a bundled name; any other name unchanged."""
    return str(ASSETS / name) if name in bundled() else name


def adapter_folder(name: str | Path) -> Path | None:
    """The adapter that `name` is (an adapter folder) or holds (a run folder), or None."""
    for folder in (Path(name), Path(name) / "adapter"):
        if (folder / WEIGHTS).is_file():
            return folder
    return None


def base_of(adapter: Path) -> str:
    """The name of the base an adapter was trained on, from its own files.

    Raises:
        MmdoraError: if none of them names it.
    """
    for file, key in ((OURS, "base"), (CONFIG, "base_model_name_or_path")):
        try:
            base = json.loads((adapter / file).read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError):
            continue
        if base:
            return base
    raise MmdoraError(f"{adapter}: neither {OURS} nor {CONFIG} names the base model")


def load(
    name: str | Path,
    *,
    dtype: str = "fp32",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Open a model and its processor, ready for inference (`eval()` mode).

    Args:
        name: bundled name, hub id, checkpoint folder, or adapter/run folder (base plus adapter).
        dtype: "fp32", "bf16" or "fp16" for the weights, whatever the file holds.
        device: where to put the model; None leaves it on the CPU.
        trust_remote_code: run code that a checkpoint brings along; off unless you ask.

    Raises:
        MmdoraError: if there is no such model, or it is no image-text-to-text model.
    """
    adapter = adapter_folder(name)
    base = base_of(adapter) if adapter is not None else str(name)
    folder = resolve(base)
    if dtype not in DTYPES:
        raise MmdoraError(f"dtype {dtype!r}: use one of {', '.join(DTYPES)}")
    options = {"trust_remote_code": trust_remote_code}
    bars = is_progress_bar_enabled()
    disable_progress_bar()  # one line a tensor; shards of a large model take long, but say nothing useful either
    try:
        processor = AutoProcessor.from_pretrained(folder, **options)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=DTYPES[dtype], **options)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        known = ", ".join(bundled())
        raise MmdoraError(
            f"model {base!r}: cannot be loaded as a folder, a hub id or a bundled name ({known}): {reason}"
        ) from None
    finally:
        if bars:
            enable_progress_bar()
    model.name_or_path = base
    if adapter is not None:
        load_adapter(model, adapter)
    if device is not None:
        model.to(device)
    return model.eval(), processor
