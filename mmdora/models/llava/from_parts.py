"""Makes LLaVA-1.5 as it is before instruction tuning, from a language model, a CLIP tower and LLaVA's own projector.

`python -m mmdora.models.llava.from_parts OUT --language lmsys/vicuna-7b-v1.5 --tower
openai/clip-vit-large-patch14-336 --projector mm_projector.bin`

The projector is the file that LLaVA's first stage saves; for Vicuna-7B-v1.5 it is on the hub as
liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5. Prompt and pictures follow LLaVA's `v1` conversation
and its `image_aspect_ratio: pad`, as LLaVA's training and evaluation scripts set them
(https://github.com/haotian-liu/LLaVA: llava/conversation.py, conv_vicuna_v1; llava/mm_utils.py, expand2square and
tokenizer_image_token; scripts/v1_5/finetune.sh). The result is an ordinary checkpoint of `transformers`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mmdora.errors import MmdoraError
from mmdora.models.llava.assemble import assemble
from mmdora.models.llava.templates import LLAVA_V1
from mmdora.models.llava.tower import Tower
from mmdora.models.torch_files import read_state

PROJECTOR = {"0": "linear_1", "2": "linear_2"}
"""Index in LLaVA's projector -> name in `transformers`. The projector is an nn.Sequential: linear, GELU, linear."""


def compose(
    language: Any, tokenizer: Any, tower: CLIPVisionModel, projector: dict[str, Tensor]
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Make the model, in the dtype of `language`, and its processor.

    The image token is added to `language` and `tokenizer` in place.

    Args:
        language: a Llama with its head.
        projector: tensors of linear_1 and linear_2, as `read_projector` gives them.

    Raises:
        MmdoraError: if the projector does not fit the widths of tower and language model, or if the tokenizer puts no
            start token before a text.
    """
    vision: Any = tower.config
    hidden, seen, side, patch = language.config.hidden_size, vision.hidden_size, vision.image_size, vision.patch_size
    shapes = {"linear_1.weight": [hidden, seen], "linear_1.bias": [hidden]}
    shapes |= {"linear_2.weight": [hidden, hidden], "linear_2.bias": [hidden]}
    for name, shape in shapes.items():
        if list(projector[name].shape) != shape:
            raise MmdoraError(
                f"projector: {name} is {list(projector[name].shape)}, between this tower and language model {shape}"
            )
    if tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]:
        raise MmdoraError("the tokenizer sets no start token before a text, which LLaVA's prompts begin with")
    clip = Tower(tower, side, patch, tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD))
    return assemble(language, tokenizer, clip, LLAVA_V1, projector)


def read_projector(file: Path) -> dict[str, Tensor]:
    """The tensors of `mm_projector.bin` under the names that `transformers` gives them.

    Raises:
        MmdoraError: if the file is no two-layer projector (`mlp2x_gelu`).
    """
    projector = {}
    for name, tensor in read_state(file).items():
        match = re.fullmatch(r"(?:.*\.)?mm_projector\.([02])\.(weight|bias)", name)
        if match is None:
            raise MmdoraError(f"{file}: {name} belongs to no two-layer projector (mlp2x_gelu)")
        projector[f"{PROJECTOR[match[1]]}.{match[2]}"] = tensor
    missing = [f"{layer}.{part}" for layer in PROJECTOR.values() for part in ("weight", "bias")]
    if missing := [name for name in missing if name not in projector]:
        raise MmdoraError(f"{file}: lacks {', '.join(missing)} of a two-layer projector")
    return projector


def main() -> None:
    parser = argparse.ArgumentParser(description="Write LLaVA as it is before instruction tuning.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--language", default="lmsys/vicuna-7b-v1.5", help="hub id or folder")
    parser.add_argument("--tower", default="openai/clip-vit-large-patch14-336", help="hub id or folder")
    parser.add_argument("--projector", type=Path, required=True, help="mm_projector.bin of LLaVA's first stage")
    options = parser.parse_args()
    projector = read_projector(options.projector)
    language = AutoModelForCausalLM.from_pretrained(options.language, dtype="auto")
    tower = CLIPVisionModel.from_pretrained(options.tower)
    for part in compose(language, AutoTokenizer.from_pretrained(options.language), tower, projector):
        part.save_pretrained(options.out)


if __name__ == "__main__":
    main()
