"""Composes a LLaVA of an image tower, a new projector, and a causal language model of `transformers`.

The result is a `LlavaForConditionalGeneration`, an ordinary checkpoint. Its projector has not learned anything yet;
LLaVA's first stage trains it (`configs/compose_llava.yaml`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    set_seed,
)

from mmdora.config import Compose
from mmdora.errors import MmdoraError
from mmdora.families import family_of
from mmdora.files import partial_path
from mmdora.models.llava.tower import Tower, open_tower

IMAGE = "<image>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# Images come first in their message. LLaVA tokenises the text after an image by itself, so that a SentencePiece
# tokenizer puts its word mark before the line break. Here the blank after <image> gives the same two tokens.
LLAVA_V1 = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'][0]['text'] }}{% else %}" + SYSTEM + "{% endif %}"
    "{{ ' ' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + IMAGE + " \n{% endif %}{% endfor %}"
    "{{ message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\n') }}"
    "{% elif message['role'] == 'assistant' %} ASSISTANT:{% generation %}"
    " {{ message['content'] | map(attribute='text') | join('\n') }}{{ eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
AS_TEXT = (
    "{%- set found = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set words = message['content'] -%}{%- else -%}{%- set words -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{ '" + IMAGE + "\n' }}{%- endfor -%}"
    "{{- message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\n') -}}"
    "{%- endset -%}{%- endif -%}"
    "{%- set found.messages = found.messages + [dict(message, content=words)] -%}"
    "{%- endfor -%}{%- set messages = found.messages -%}"
)
"""The beginning of a template that ends with a language model's own template. That one expects each message as a text,
so this joins the parts of each message into a text, images first."""

VOCABULARY_STEP = 64  # The rows of the embedding are a multiple of 64, which matrix products on GPUs are fastest with.
PROBE = 8  # Tokens of the text on which the language model is compared with itself inside of LLaVA.
RECIPE = "compose.json"


def compose(recipe: Compose, *, seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Make the LLaVA of a recipe, in the dtype of the language model's files, with a new projector.

    Raises:
        MmdoraError: if tower or language model cannot be loaded, or if no LLaVA can be made of them.
    """
    where = f"language {recipe.language!r}"
    try:
        AutoConfig.from_pretrained(recipe.language)  # This finds a wrong name before the tower is loaded.
        tokenizer = AutoTokenizer.from_pretrained(recipe.language)
    except (OSError, ValueError, KeyError) as error:
        raise MmdoraError(f"{where}: cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    tower = open_tower(recipe.vision)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            recipe.language, dtype="auto", use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise MmdoraError(f"{where}: cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    language, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise MmdoraError(f"{where}: {len(missing)} tensors are missing in its files, such as {missing[0]}")
    own = tokenizer.chat_template if recipe.template != "llava_v1" else None
    if recipe.template == "own" and own is None:
        raise MmdoraError(f"{where}: has no chat template of its own; leave model.compose.template out")
    set_seed(seed)
    try:
        model, processor = assemble(language, tokenizer, tower, AS_TEXT + own if own else LLAVA_V1)
    except MmdoraError as error:
        raise MmdoraError(f"{where}: {error}") from None
    _check_template(processor, where)
    return model, processor


def compose_into(folder: Path, recipe: Compose, seed: int, say: Callable[[str], None]) -> None:
    """Write a composed base, unless it is there already.

    Raises:
        MmdoraError: in the cases of `compose`, or if the folder holds a base that was composed of something else.
    """
    made_from = asdict(recipe) | {"seed": seed}
    if folder.exists():
        before = json.loads((folder / RECIPE).read_text(encoding="utf-8")) if (folder / RECIPE).is_file() else None
        if before != made_from:
            raise MmdoraError(
                f"{folder}: is there, and was not composed of what model.compose and training.seed say; remove it, or "
                "give another training.output"
            )
        return
    say(f"composing {recipe.vision} and {recipe.language} into {folder}")
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    for part in compose(recipe, seed=seed):
        part.save_pretrained(partial)
    (partial / RECIPE).write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
    partial.rename(folder)


def assemble(
    language: Any, tokenizer: Any, tower: Tower, template: str, projector: dict[str, Tensor] | None = None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Make the model, in the dtype of `language`, and its processor.

    The image token is added to `language` and `tokenizer` in place.

    Args:
        language: a causal language model with its head.
        tower: the image tower.
        template: the chat template, with one `<image>` per image.
        projector: tensors of linear_1 and linear_2; None for new ones, initialised as by `transformers`.

    Raises:
        MmdoraError: if the language model gives other logits inside of a LLaVA, or its tokenizer has no end token.
    """
    if tokenizer.eos_token is None:
        raise MmdoraError("its tokenizer has no end token, so that no answer would end")
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token  # LLaVA pads with unk.
    _widen(language, len(tokenizer))
    base, head = language.base_model, language.get_output_embeddings()
    tied = bool(language.config.tie_word_embeddings) and hasattr(base, "embed_tokens")
    # The weight is shared although the config does not say so, and LLaVA would find it under one of its names only.
    if not tied and head.weight is language.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
    config = LlavaConfig(
        vision_config=tower.module.config.to_dict(),
        text_config=language.config.to_dict() | {"tie_word_embeddings": tied},
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(tower.side // tower.patch) ** 2,
        vision_feature_layer=tower.layer,
        vision_feature_select_strategy="default" if tower.class_token else "full",
        projector_hidden_act="gelu",
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    if type(model.model.language_model) is not type(base) or getattr(head, "bias", None) is not None:
        raise MmdoraError(f"LLaVA of transformers cannot hold a {type(language).__name__}; use another language model")
    with torch.no_grad():
        probe = torch.arange(PROBE)[None] % language.config.vocab_size
        alone = language.eval()(probe).logits
    model.model.vision_tower = tower.module.to(language.dtype)
    model.model.language_model, model.lm_head = base, head
    connector: Any = model.model.multi_modal_projector
    if projector is None:
        connector.to_empty(device="cpu").to(language.dtype).apply(model._init_weights)
    else:
        own = {name: tensor.to(language.dtype).clone() for name, tensor in projector.items()}
        connector.load_state_dict(own, assign=True)
    eos, more = [tokenizer.eos_token_id], getattr(language.generation_config, "eos_token_id", None)
    eos += [end for end in (more if isinstance(more, list) else [more]) if end is not None and end not in eos]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos if len(eos) > 1 else eos[0],
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.no_grad():
        if not torch.equal(model.eval()(input_ids=probe).logits, alone):
            raise MmdoraError(
                f"a {type(language).__name__} says other things inside of LLaVA (its head does more than a product); "
                "use another language model"
            )
    return model, processor_of(tokenizer, tower, template)


def processor_of(tokenizer: Any, tower: Tower, template: str) -> LlavaProcessor:
    """The processor: Pillow, as in LLaVA, pads pictures to a square with their mean colour and scales it to `side`."""
    pictures = LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": tower.side},
        crop_size={"height": tower.side, "width": tower.side},
        image_mean=list(tower.mean),
        image_std=list(tower.std),
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=tower.patch,
        vision_feature_select_strategy="default" if tower.class_token else "full",
        chat_template=template,
        num_additional_image_tokens=int(tower.class_token),
    )


def _check_template(processor: Any, where: str) -> None:
    """Raise an MmdoraError if in a conversation of several turns answers could not be told from prompts."""
    picture, text = {"type": "image"}, {"type": "text", "text": "What is this?"}
    turns = [
        {"role": "user", "content": [picture, text]},
        {"role": "assistant", "content": [{**text, "text": "A cat."}]},
    ]
    turns += [{"role": "user", "content": [text]}, turns[1]]
    try:
        rendered, _ = family_of(processor).render_with_answers(turns)
        if rendered.count(IMAGE) != 1:
            raise MmdoraError("the chat template loses what stands in a message")
    except MmdoraError as error:
        raise MmdoraError(f"{where}: {error}; set model.compose.template: llava_v1") from None


def _widen(language: Any, tokens: int) -> None:
    """Add rows for the new tokens, in place. Each is the mean of the others, so its logit is never the largest."""
    known = language.config.vocab_size
    if tokens <= known:
        return
    language.resize_token_embeddings(tokens, pad_to_multiple_of=VOCABULARY_STEP, mean_resizing=False)
    tables: list[nn.Module] = [language.get_input_embeddings(), language.get_output_embeddings()]
    with torch.no_grad():
        for table in tables:
            weight: Any = table.weight
            weight[known:] = weight[:known].float().mean(0).to(weight.dtype)
