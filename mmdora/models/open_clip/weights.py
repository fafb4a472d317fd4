"""Reads the weights of a tower that lie outside of the checkpoint, and identifies them by a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_state_dict
from torch import Tensor, nn

from mmdora.errors import MmdoraError
from mmdora.models.open_clip.config import OpenClipVisionConfig


def reference(config: OpenClipVisionConfig, visual: nn.Module) -> dict[str, Tensor]:
    """Read the tensors of `visual`, in fp32, from the file or tag of open_clip that `config.pretrained` names.

    A file may be in safetensors or written by `torch.save` (it is read with `weights_only`). It holds a tower, or a
    whole CLIP with the tower below `visual.`.
    """
    name, source = config.open_clip_name, str(config.pretrained)
    state: Any
    try:
        if Path(source).is_file():
            state = load_state_dict(source)
        else:
            tag = None if source == name else source
            state = open_clip.create_model(
                name or "", tag, require_pretrained=True, force_quick_gelu=config.quick_gelu
            ).state_dict()
    except Exception as error:  # open_clip raises many kinds of errors for a broken file or an unknown tag.
        reason = " ".join(str(error).split())[:300]
        raise MmdoraError(f"open_clip tower {name}, weights {source!r}: cannot be loaded: {reason}") from None
    below = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    state = below or state
    wanted = visual.state_dict()
    wrong = [key for key, tensor in wanted.items() if key not in state or state[key].shape != tensor.shape]
    if wrong:
        raise MmdoraError(
            f"open_clip weights {source!r}: do not fit the tower {name or ''}: {len(wrong)} tensors are missing or of "
            f"another shape, the first is {wrong[0]}"
        )
    return {key: state[key].float() if state[key].is_floating_point() else state[key] for key in wanted}


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and bytes of all tensors."""
    made = hashlib.sha256()
    for name in sorted(state):
        made.update(name.encode())
        made.update(state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()
