"""Whether the processor of a base and its model agree about pictures and tokens: their settings are in several files.

A processor writes a picture as so many image tokens, and the model puts the features of the picture in their places.
The model is built without memory from its config, and its vision part runs on shapes alone, so no tensor is read.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from math import prod
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmdora.adapt.modality import is_text_only
from mmdora.errors import MmdoraError
from mmdora.families import family_of

IMAGE_IDS = ("image_token_id", "image_token_index")
"""The keys under which a config has the token that stands for a picture's features."""
SIZE = (448, 336)
"""(width, height) in pixels of the picture that is counted: no square, so that tiles and grids count too."""
SETTINGS = ("image_size", "patch_size", "spatial_merge_size", "merge_size", "temporal_patch_size", "scale_factor")
SETTINGS += ("size", "crop_size", "max_image_size", "image_grid_pinpoints", "vision_feature_select_strategy")
SETTINGS += ("num_additional_image_tokens", "num_image_tokens", "image_seq_length", "image_seq_len")
SETTINGS += ("mm_tokens_per_image", "downsample_ratio")
"""What decides how many tokens or features a picture has, in one family or another; an error shows those there are."""


def check_agreement(name: str, processor: Any, model: Any) -> None:
    """Raise an MmdoraError if a processor writes other tokens than its model has places for, or in another order.

    Args:
        name: the base, for the error.
        processor: of a family with a chat template, others are not checked; of a language model only the vocabulary is.
        model: built from the base's config on the meta device.
    """
    family = family_of(processor)
    tokenizer = family.tokenizer
    embedded, known = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    key = next((key for key in IMAGE_IDS if isinstance(getattr(model.config, key, None), int)), None)
    if is_text_only(model.config):
        _check_vocabulary(name, known, embedded)
        return
    family.check_model(name, model)
    if key is None or not getattr(processor, "chat_template", None):
        return
    image = getattr(model.config, key)
    _check_vocabulary(name, known - (image >= embedded), embedded)
    inputs, _ = family_of(processor).example_question(Image.new("RGB", SIZE))
    tokens = int((inputs["input_ids"] == image).sum())
    if not tokens:
        word = tokenizer.convert_ids_to_tokens(image) if 0 <= image < known else "no token"
        own = getattr(processor, "image_token", None)
        if own == word:
            raise MmdoraError(
                f"model {name!r}: its chat template (chat_template.jinja) writes no {own!r} for the picture of a "
                "question; put back the template of this base"
            )
        raise MmdoraError(
            f"model {name!r}: config.json has {key} {image} ({word!r}), which its processor never writes: a picture is "
            f"{own!r}, in tokenizer.json {tokenizer.convert_tokens_to_ids(own)}; set {key} to that"
        )
    made = features_made(model, inputs)
    if isinstance(made, str) or (made is not None and made != tokens):
        reason = made if isinstance(made, str) else f"{made} features"
        raise MmdoraError(
            f"model {name!r}: its processor writes {tokens} tokens for a picture of {SIZE[0]}x{SIZE[1]}, but its model "
            f"makes {reason} of it; processor_config.json / preprocessor_config.json have {_shown(processor)}, and "
            f"config.json has {_shown(model.config)}; restore the one that was changed"
        )


def _check_vocabulary(name: str, known: int, embedded: int) -> None:
    """Raise an MmdoraError if a tokenizer has more tokens than its model embeds."""
    if known > embedded:
        raise MmdoraError(
            f"model {name!r}: its tokenizer (tokenizer.json) has {known:,} tokens, but its model (config.json, "
            f"vocab_size) embeds {embedded:,}; restore the file that was changed"
        )


def features_made(model: Any, inputs: Mapping[str, Tensor]) -> int | str | None:
    """The number of features that a model on the meta device makes of a processor's pictures.

    Returns:
        Instead, why the model could not read the pictures; or None if that cannot be told from shapes.
    """
    vision: Any = getattr(model.config, "vision_config", None)
    if "image_grid_thw" in inputs:  # The towers of Qwen and GLM-4V loop over the grid's values.
        channels = getattr(vision, "in_channels", getattr(vision, "num_channels", 3))
        patch = vision.patch_size**2 * getattr(vision, "temporal_patch_size", 1) * channels
        numbers = prod(inputs["pixel_values"].shape[1:])  # PaddleOCR's patches are not flattened.
        if numbers != patch:
            return f"nothing (patches of {numbers} numbers instead of {patch})"
        return int(inputs["image_grid_thw"].prod(-1).sum()) // vision.spatial_merge_size**2
    if getattr(vision, "model_type", None) == "pixtral" and "image_sizes" in inputs:  # So does Pixtral's over sizes.
        side = vision.patch_size * getattr(model.config, "spatial_merge_size", 1)
        return int((inputs["image_sizes"] // side).prod(-1).sum())
    if hasattr(model.config, "scale_factor") and inputs["pixel_values"].ndim == 5:  # Idefics3's drops empty tiles.
        tiles, _, *sides = inputs["pixel_values"].shape[1:]
        if sides != [vision.image_size] * 2:
            return f"nothing (tiles of {sides[1]}x{sides[0]} where it learned {vision.image_size}x{vision.image_size})"
        return tiles * (vision.image_size // vision.patch_size) ** 2 // model.config.scale_factor**2
    tower = getattr(getattr(model, "model", model), "get_image_features", None)
    if tower is None:
        return None
    taken = inspect.signature(tower).parameters
    arguments = {
        name: value.to("meta") if value.is_floating_point() else value
        for name, value in inputs.items()
        if name in taken
    }
    try:
        with torch.no_grad():
            made = tower(**arguments).pooler_output
    except (ValueError, RuntimeError, IndexError) as error:
        reason = " ".join(str(error).split())
        unknown = isinstance(error, NotImplementedError) or "meta" in reason
        return None if unknown else f"nothing ({reason[:200]})"
    except (TypeError, AttributeError):  # The model's own code, of a form that is not known here.
        return None
    if made is None:  # Llama 4 gives the states of its tower alone.
        return None
    return sum(prod(each.shape[:-1]) for each in ([made] if isinstance(made, Tensor) else made))


def _plain(value: Any) -> Any:
    """A size without the sides that are not set."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return {side: pixels for side, pixels in asdict(value).items() if pixels}


def _shown(owner: Any) -> str:
    """The settings of `SETTINGS` that a processor or a config has."""
    parts = [owner, getattr(owner, "image_processor", None), getattr(owner, "vision_config", None)]
    settings: dict[str, str] = {}
    for part in parts:
        for key in SETTINGS:
            value = getattr(part, key, None)
            if value is not None and not callable(value):
                settings.setdefault(key, str(_plain(value)))
    return ", ".join(f"{key} {value:.80}" for key, value in settings.items()) or "none of the usual settings"
