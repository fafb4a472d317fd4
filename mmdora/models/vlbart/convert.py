"""Converts VL-Adapter's `.pth` checkpoints to VL-BART.

`python -m mmdora.models.vlbart.convert LAST.pth OUT --tower RN101 --pretrained openai --grid 6`

Such a file is the `state_dict` of VL-Adapter's BART, written by `torch.save`. The names below come from VL-T5's and
VL-Adapter's public code. No trained file of theirs was available, so this was not tried on one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from mmdora.errors import MmdoraError
from mmdora.models.torch_files import read_state
from mmdora.models.vlbart.compose import add_arguments, compose_from, vision_of
from mmdora.models.vlbart.head import TOWER, VLBartForConditionalGeneration

KEYS = {
    "module.": "",
    "model.vis_encoder.": "model.encoder.",
    "model.encoder.visual_embedding.feat_embedding.": "model.visual_embedding.feature.",
    "model.encoder.visual_embedding.absolute_vis_pos_embedding.": "model.visual_embedding.box.",
    "model.encoder.visual_embedding.img_order_embedding.": "model.visual_embedding.image.",
    "model.encoder.visual_embedding.obj_order_embedding.": "model.language_model.shared.",
    "model.encoder.embed_tokens.": "model.language_model.shared.",
    "model.decoder.embed_tokens.": "model.language_model.shared.",
    "model.shared.": "model.language_model.shared.",
    "lm_head.": "model.language_model.shared.",
    "model.encoder.": "model.language_model.encoder.",
    "model.decoder.": "model.language_model.decoder.",
}
"""Prefix of a name in the file -> prefix here; the first that fits is taken. Five of the names are one token table."""

DOWN, UP = ".lora_As.", ".lora_Bs."
"""The parts of names that mark the two factors of LoRA, as in `q_proj.lora_As.vqa` [r, in] and `q_proj.lora_Bs.vqa`
[out, r]. Each task may have a LoRA of its own, or the same LoRA may stand under the names of all tasks."""

PROMPTS = {"gqa": "gpa: {}"}
"""Prompts that VL-Adapter spells differently from ours."""


def convert(file: Path, model: VLBartForConditionalGeneration, *, lora_alpha: float | None = None) -> None:
    """Load a checkpoint of VL-Adapter into a VL-BART of the same shape, in place. LoRA is merged into the weights.

    Args:
        file: the checkpoint of VL-Adapter.
        model: a VL-BART of the same shape.
        lora_alpha: LoRA's alpha in the run, which the file does not hold (it only holds the rank).

    Raises:
        MmdoraError: if there is no such file, if the model or the file lacks tensors, if shapes or the copies of the
            token table differ, if each task has a LoRA of its own, or if there is a LoRA but no `lora_alpha`.
    """
    state = merged(read_state(file), file, lora_alpha)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        key = rename(name)
        if key in renamed and not torch.equal(renamed[key], tensor):
            raise MmdoraError(f"{file}: {name} differs from the token table it is tied to")
        renamed[key] = tensor
    ours = {key: value for key, value in model.state_dict().items() if not key.startswith(TOWER)}
    tied = set(model.all_tied_weights_keys)
    missing = [key for key in ours if key not in renamed and key not in tied]
    foreign = [key for key in renamed if key not in ours]
    if missing or foreign:
        problem, keys = ("lacks", missing) if missing else ("has what VL-BART lacks:", foreign)
        raise MmdoraError(f"{file}: {problem} {', '.join(keys[:3])}" + (", ..." if len(keys) > 3 else ""))
    for key, tensor in renamed.items():
        if tensor.shape != ours[key].shape:
            raise MmdoraError(f"{file}: {key} is {list(tensor.shape)}, this model's is {list(ours[key].shape)}")
    for key, tensor in renamed.items():
        ours[key].copy_(tensor)


def rename(name: str) -> str:
    """The name in our VL-BART of a tensor in a file of VL-Adapter."""
    for theirs, mine in KEYS.items():
        if name.startswith(theirs):
            name = mine + name.removeprefix(theirs)
            if mine not in ("", "model.encoder."):
                break
    return name


def merged(state: dict[str, Tensor], file: Path, lora_alpha: float | None) -> dict[str, Tensor]:
    """The tensors with LoRA merged into the weights: `W + alpha / r * B @ A`."""
    downs = sorted(name for name in state if DOWN in name)
    if not downs:
        return state
    if lora_alpha is None:
        raise MmdoraError(f"{file}: has LoRA weights; give the run's lora_alpha (the file does not hold it)")
    state, done = dict(state), {}
    for name in downs:
        module = name.partition(DOWN)[0]
        down, up = state.pop(name), state.pop(name.replace(DOWN, UP))
        update = lora_alpha / len(down) * up.float() @ down.float()
        if module in done and not torch.equal(done[module], update):
            raise MmdoraError(f"{file}: {module} has another LoRA for each task; one model cannot be all of them")
        done[module] = update
    for module, update in done.items():
        weight = state[f"{module}.weight"]
        state[f"{module}.weight"] = (weight.float() + update).to(weight)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a VL-BART with the weights of a VL-Adapter checkpoint.")
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lora-alpha", type=float, help="of the run, for a checkpoint with LoRA")
    add_arguments(parser)
    options = parser.parse_args()
    model, processor = compose_from(options.bart, vision_of(options), prompts=PROMPTS)
    convert(options.file, model, lora_alpha=options.lora_alpha)
    for part in (model, processor):
        part.save_pretrained(options.out)


if __name__ == "__main__":
    main()
