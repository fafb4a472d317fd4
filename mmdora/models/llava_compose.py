"""LLaVA-1.5 as it is before instruction tuning: a language model, a CLIP tower, LLaVA's pretrained projector.

`python -m mmdora.models.llava_compose OUT --language lmsys/vicuna-7b-v1.5 --tower
openai/clip-vit-large-patch14-336 --projector mm_projector.bin`

The projector is the file that LLaVA's first stage saves, for Vicuna-7B-v1.5 the hub's
liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5. Prompt and pictures follow LLaVA's `v1` conversation
and its `image_aspect_ratio: pad`, as its training and its evaluation scripts set them
(https://github.com/haotian-liu/LLaVA: llava/conversation.py, conv_vicuna_v1; llava/mm_utils.py, expand2square and
tokenizer_image_token; scripts/v1_5/finetune.sh). The result is an ordinary checkpoint of `transformers`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
)

from mmdora.errors import MmdoraError
from mmdora.models.torch_files import read_state

IMAGE = "<image>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# Images come first in their message. LLaVA tokenises what follows an image on its own, and a SentencePiece
# tokenizer then sets its word mark before the line break: the blank after <image> gives the same two tokens.
TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'][0]['text'] }}{% else %}" + SYSTEM + "{% endif %}"
    "{{ ' ' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + IMAGE + " \n{% endif %}{% endfor %}"
    "{{ message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\n') }}"
    "{% elif message['role'] == 'assistant' %} ASSISTANT:{% generation %}"
    " {{ message['content'] | map(attribute='text') | join('\n') }}{{ eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
VOCABULARY_STEP = 64  # the rows of the embedding are a multiple of it
LAYER = -2  # of the tower, whose patches the projector reads

PROJECTOR = {"0": "linear_1", "2": "linear_2"}
"""LLaVA's two-layer projector is an nn.Sequential with a GELU between."""


def compose(
    language: Any, tokenizer: Any, tower: CLIPVisionModel, projector: dict[str, Tensor]
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model, in the dtype of `language`, and its processor; `language` and `tokenizer` get the image token.

    Args:
        language: a Llama with its head.
        projector: linear_1 and linear_2, see `read_projector`.

    Raises:
        MmdoraError: if the projector is not of the width of both, or the tokenizer sets no start token.
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
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token  # as LLaVA pads
    _widen(language, len(tokenizer))
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=language.config.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(side // patch) ** 2,
        vision_feature_layer=LAYER,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower.to(language.dtype)
    model.model.language_model, model.lm_head = language.model, language.lm_head
    own = {name: tensor.to(language.dtype).clone() for name, tensor in projector.items()}
    model.model.multi_modal_projector.load_state_dict(own, assign=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model.eval(), processor_of(tokenizer, side, patch)


def processor_of(tokenizer: Any, side: int, patch: int) -> LlavaProcessor:
    """Pictures padded to a square with CLIP's mean colour, then `side` pixels wide, by Pillow as LLaVA's are."""
    pictures = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    options = {"patch_size": patch, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaProcessor(pictures, tokenizer, chat_template=TEMPLATE, **options)


def read_projector(file: Path) -> dict[str, Tensor]:
    """The tensors of `mm_projector.bin` under the names that `transformers` gives them.

    Raises:
        MmdoraError: if the file is no two-layer projector (`mlp2x_gelu`).
    """
    found = {}
    for name, tensor in read_state(file).items():
        match = re.fullmatch(r"(?:.*\.)?mm_projector\.([02])\.(weight|bias)", name)
        if match is None:
            raise MmdoraError(f"{file}: {name} belongs to no two-layer projector (mlp2x_gelu)")
        found[f"{PROJECTOR[match[1]]}.{match[2]}"] = tensor
    missing = [f"{layer}.{part}" for layer in PROJECTOR.values() for part in ("weight", "bias")]
    if missing := [name for name in missing if name not in found]:
        raise MmdoraError(f"{file}: lacks {', '.join(missing)} of a two-layer projector")
    return found


def _widen(language: Any, tokens: int) -> None:
    """Rows for the new tokens: the mean of the others, whose logit is the mean and so never the largest."""
    known = language.config.vocab_size
    if tokens <= known:
        return
    language.resize_token_embeddings(tokens, pad_to_multiple_of=VOCABULARY_STEP, mean_resizing=False)
    tables: list[nn.Module] = [language.get_input_embeddings(), language.get_output_embeddings()]
    with torch.no_grad():
        for table in tables:
            weight: Any = table.weight
            weight[known:] = weight[:known].float().mean(0).to(weight.dtype)


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
