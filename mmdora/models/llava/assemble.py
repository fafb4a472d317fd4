"""Puts an image tower, a projector and a causal language model of `transformers` together as one LLaVA."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
)

from mmdora.errors import MmdoraError
from mmdora.models.llava.templates import IMAGE
from mmdora.models.llava.tower import Tower

VOCABULARY_STEP = 64
"""The number of rows of the embedding becomes a multiple of 64, because GPUs multiply such matrices fastest."""
PROBE = 8
"""Tokens of the text on which the language model alone is compared with the same model inside of LLaVA."""


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
    tied = _settle_tie(language)
    model = _skeleton(language, tower, tied, tokenizer.convert_tokens_to_ids(IMAGE))
    alone = _probe_logits(language)
    model.model.vision_tower = tower.module.to(language.dtype)
    model.model.language_model, model.lm_head = language.base_model, language.get_output_embeddings()
    _fill_projector(model, language.dtype, projector)
    model.generation_config = _generation_config(language, tokenizer)
    if not torch.equal(_probe_logits(model), alone):
        raise MmdoraError(
            f"a {type(language).__name__} gives other logits inside of LLaVA (its head does more than a matrix "
            "product); use another language model"
        )
    return model, processor_of(tokenizer, tower, template)


def _settle_tie(language: Any) -> bool:
    """Whether LLaVA can keep head and embedding tied. If it cannot, give the head a copy of the weight, in place."""
    head = language.get_output_embeddings()
    tied = bool(language.config.tie_word_embeddings) and hasattr(language.base_model, "embed_tokens")
    # The weight is shared although the config does not say so, and LLaVA would load it under only one of its two names.
    if not tied and head.weight is language.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
    return tied


def _skeleton(language: Any, tower: Tower, tied: bool, image_token: int) -> LlavaForConditionalGeneration:
    """A LLaVA of the right shapes on the meta device.

    Args:
        tied: whether head and embedding are one weight.
        image_token: id of `<image>`.

    Raises:
        MmdoraError: if LLaVA cannot hold a language model of this class.
    """
    config = LlavaConfig(
        vision_config=tower.module.config.to_dict(),
        text_config=language.config.to_dict() | {"tie_word_embeddings": tied},
        image_token_index=image_token,
        image_seq_length=(tower.side // tower.patch) ** 2,
        vision_feature_layer=tower.layer,
        vision_feature_select_strategy=_selection(tower),
        projector_hidden_act="gelu",
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    bias = getattr(language.get_output_embeddings(), "bias", None)
    if type(model.model.language_model) is not type(language.base_model) or bias is not None:
        raise MmdoraError(f"LLaVA of transformers cannot hold a {type(language).__name__}; use another language model")
    return model


def _probe_logits(model: Any) -> Tensor:
    """The logits [1, PROBE, V] of a text of the first tokens; the model is in eval mode afterwards."""
    text_config = model.config.get_text_config()
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(PROBE)[None] % text_config.vocab_size).logits


def _fill_projector(
    model: LlavaForConditionalGeneration, dtype: torch.dtype, tensors: dict[str, Tensor] | None
) -> None:
    """Put these tensors into the projector, or initialise it anew if they are None."""
    projector: Any = model.model.multi_modal_projector
    if tensors is None:
        projector.to_empty(device="cpu").to(dtype).apply(model._init_weights)
    else:
        projector.load_state_dict({name: tensor.to(dtype).clone() for name, tensor in tensors.items()}, assign=True)


def _generation_config(language: Any, tokenizer: Any) -> GenerationConfig:
    """Let generation stop at the tokenizer's end token and at those that the language model names beside it."""
    ends, named = [tokenizer.eos_token_id], getattr(language.generation_config, "eos_token_id", None)
    ends += [end for end in (named if isinstance(named, list) else [named]) if end is not None and end not in ends]
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
    )


def _selection(tower: Tower) -> Literal["default", "full"]:
    """LLaVA's `vision_feature_select_strategy`: "default" leaves out the class token, "full" keeps all tokens."""
    return "default" if tower.class_token else "full"


def processor_of(tokenizer: Any, tower: Tower, template: str) -> LlavaProcessor:
    """Make the processor. As in LLaVA, Pillow pads pictures to a square with the mean colour and scales the square."""
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
        vision_feature_select_strategy=_selection(tower),
        chat_template=template,
        num_additional_image_tokens=int(tower.class_token),
    )


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
