"""What a quantised base means for an export: the weights that are merged into, and how far others would be off."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmdora.adapt.quantized import dequantize_all
from mmdora.adapter_files.adapters import load_adapter
from mmdora.config import ImageTokens
from mmdora.export.logits import Outputs, distance, outputs_of
from mmdora.families import Prompt
from mmdora.models.base import format_of_files, model_class
from mmdora.models.load import load, load_processor, no_bars
from mmdora.models.locate import Location
from mmdora.models.quantize import NONE, format_of, saved_settings, settle


def dequantized_model(location: Location) -> tuple[Any, Any]:
    """The model that was trained, unmerged, with the dequantised weights in fp32 in the places of the quantised."""
    model, processor = load(replace(location, adapter=None))
    dequantize_all(model, torch.float32)
    if location.adapter is not None:
        load_adapter(model, location.adapter)
    return model.eval(), processor


def tell(
    location: Location, folder: Path, asked: list[Prompt], say: Callable[[str], Any], *, requantize: bool = False
) -> None:
    """Say how far the written checkpoint is from the quantised model that was trained, and what others would be.

    Distances are the largest difference of logits, relative to the largest logit, in the worst of the conversations.

    Args:
        folder: the written checkpoint.
        asked: the conversations.
        requantize: whether to put a checkpoint in its place that is quantised as the base was for training.
    """
    quantize = location.quantize
    assert quantize is not None
    trained = _outputs(*load(location), asked)
    merged = _outputs(*load(_written(folder)), asked)
    said = f"logits against the {quantize.type} model that was trained: the written one {_apart(merged, trained)}"
    if format_of_files(location.base) is None:
        with warnings.catch_warnings():
            # The line about a base in full precision is what is measured here.
            warnings.simplefilter("ignore", UserWarning)
            full = _outputs(*load(location, quantize=NONE), asked)
        said += f"; the adapter on the full-precision base, which is not written, {_apart(full, trained)}"
    say(said)
    if requantize:
        model = requantized(folder, location)
        processor = load_processor(str(folder))
        say(f"quantised again: {_apart(_outputs(model, processor, asked), trained)}")


def requantized(folder: Path, location: Location) -> Any:
    """Quantise a written checkpoint in its place, as the base was for training; gives the model as it is written."""
    with no_bars():
        model, _ = load(_written(folder), dtype=None, quantize=location.quantize)
        saved_settings(model)
        for path in folder.glob("model*.safetensors*"):
            path.unlink()
        model.save_pretrained(folder)
        config = model.config
        del model
        gc.collect()
        assert format_of(config) is not None
        again = model_class(config).from_pretrained(folder, device_map={"": "cpu"})
    settle(again)
    return again.eval()


def _written(folder: Path) -> Location:
    return Location(str(folder), str(folder), None, None, ImageTokens())  # `locate` refuses what is not finished.


def _outputs(model: Any, processor: Any, asked: list[Prompt]) -> Outputs:
    return outputs_of(model, processor, asked, text=False)


def _apart(outputs: Outputs, reference: Outputs) -> str:
    pairs = zip(outputs.logits, reference.logits, strict=True)
    same = torch.cat([(a.argmax(-1) == b.argmax(-1)) for a, b in pairs]).float().mean()
    return f"{distance(outputs, reference):.1e} (top-1 the same at {same:.1%} of positions)"
