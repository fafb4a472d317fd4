"""Makes any processor keep within a budget of tokens per image, by changing the processor's own settings.

The number of tokens that a setting gives is counted by the processor's own rule, for pictures of many sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from itertools import product
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from mmdora.config import ImageTokens
from mmdora.errors import MmdoraError
from mmdora.families import Family, family_of

SIDES = (32, 56, 96, 150, 224, 336, 448, 640, 1000, 1500, 2240, 4000)
SIZES = [(height, width) for height, width in product(SIDES, SIDES) if max(height, width) <= 4 * min(height, width)]
"""(height, width) in pixels of the pictures whose tokens are counted: sides up to 4000 pixels, and at most 4:1."""

ImageSettings = dict[str, Any]
IN_MODEL = "image_grid_pinpoints"
"""A setting that the model's config repeats, because the model uses it to put the features of an image together."""


def set_image_tokens(processor: Any, budget: ImageTokens) -> ImageSettings:
    """Change a processor's image settings so that every picture of `SIZES` takes `budget.min` to `budget.max` tokens.

    Processors that keep the resolution (Qwen2-VL to Qwen3-VL, GLM-4V) get a number of pixels: (patch size x merge
    size)^2 for each token. Processors that cut tiles (LLaVA-NeXT, LLaVA-OneVision, Idefics3, SmolVLM, InternVL) or
    scale the longest edge (Pixtral) get the largest setting that keeps within the maximum, but never more than their
    own.

    Returns:
        The changed settings by name; none if the number of tokens is fixed and within the budget (LLaVA-1.5).

    Raises:
        MmdoraError: if the processor cannot keep within the budget; the message gives the counts that it can give.
    """
    if budget.min is None and budget.max is None:
        return {}
    if not family_of(processor).sees:
        raise MmdoraError("data.image_tokens: this model reads text alone; leave it out")
    least, most = budget.min or 0, budget.max or 2**31
    images, family = processor.image_processor, family_of(processor)
    before = _counts(family)
    closest: tuple[int, int] | None = None
    for settings in _candidates(images, least, budget.max):
        own = {name: getattr(images, name) for name in settings}
        _set(images, settings)
        lowest, highest = _counts(family)
        if least <= lowest and highest <= most:
            return settings
        if highest <= most and closest is None:
            closest = lowest, highest
        _set(images, own)
    if least <= before[0] and before[1] <= most:
        return {}
    lowest, highest = closest or before
    given = str(lowest) if lowest == highest else f"{lowest} to {highest}"
    raise MmdoraError(
        f"data.image_tokens: {type(processor).__name__} cannot keep to min {budget.min}, max {budget.max}: "
        f"{'at best' if closest else 'its'} images take {given} tokens"
    )


def set_in_model(model: Any, settings: ImageSettings) -> None:
    """Copy to a model's config those settings of its processor that the model needs too."""
    if IN_MODEL in settings and hasattr(model.config, IN_MODEL):
        setattr(model.config, IN_MODEL, settings[IN_MODEL])


def write_image_tokens(folder: Path, settings: ImageSettings, *, trust_remote_code: bool = False) -> None:
    """Write changed settings into the files of a checkpoint.

    Raises:
        MmdoraError: if the settings that are read back from the files are not those that were set.
    """
    if not settings:
        return
    for name in ("processor_config.json", "preprocessor_config.json", "config.json"):
        if not (folder / name).is_file():
            continue
        tree = json.loads((folder / name).read_text(encoding="utf-8"))
        for part in (tree, tree.get("image_processor")) if name != "config.json" else (tree,):
            if isinstance(part, dict):
                part.update(_for_file(part, settings, model=name == "config.json"))
        (folder / name).write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    images = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code).image_processor
    for name, value in settings.items():
        if _plain(getattr(images, name)) != _plain(value):
            raise MmdoraError(f"{folder}: {name} {_plain(value)} of the images cannot be written into its files")


def _for_file(part: dict[str, Any], settings: ImageSettings, model: bool) -> ImageSettings:
    """The settings that belong in one file, under the names that this file uses."""
    if model:
        return {IN_MODEL: settings[IN_MODEL]} if IN_MODEL in part and IN_MODEL in settings else {}
    if not any(name in part for name in (*settings, "image_processor_type", "min_pixels", "max_pixels")):
        return {}
    values = {name: _plain(value) for name, value in settings.items()}
    pixels = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}  # Older files have these names, too or only.
    return values | {old: values["size"][new] for old, new in pixels.items() if old in part and "size" in values}


def _counts(family: Family) -> tuple[int, int]:
    """The fewest and the most tokens that a family gives for a picture of `SIZES`, by its settings as they are now."""
    # A family keeps what its processor answered, and whether its rule is right; only the second outlasts a setting.
    asked = family if family.expansions.has_rule else family_of(family.processor)
    try:
        counts = asked.image_tokens(SIZES)
    except MmdoraError as error:
        raise MmdoraError(f"data.image_tokens: {error}") from None
    return int(min(counts)), int(max(counts))


def _candidates(images: Any, least: int, most: int | None) -> Iterator[ImageSettings]:
    """Yield the settings to try, those with the most tokens first."""
    size = _plain(getattr(images, "size", None) or {})
    patch = getattr(images, "patch_size", None)
    if {"shortest_edge", "longest_edge"} <= size.keys() and hasattr(images, "merge_size") and isinstance(patch, int):
        yield from _pixels(images, size, (patch * images.merge_size) ** 2, least, most)
    elif hasattr(images, "max_image_size") and "longest_edge" in size:
        tile = _plain(images.max_image_size)["longest_edge"]
        for tiles in range(size["longest_edge"] // tile, 0, -1):
            yield {"size": {**size, "longest_edge": tiles * tile}}
    elif hasattr(images, "image_grid_pinpoints"):
        yield from _grids(images.image_grid_pinpoints, least)
    elif hasattr(images, "max_patches") and hasattr(images, "min_patches"):
        for highest in range(images.max_patches, 0, -1):
            for lowest in range(images.min_patches, highest + 1) if least else (images.min_patches,):
                yield {"min_patches": min(lowest, highest), "max_patches": highest}
    elif set(size) == {"longest_edge"} and patch is not None:
        step = patch if isinstance(patch, int) else _plain(patch)["height"]
        for edge in range(size["longest_edge"], 0, -step):
            yield {"size": {"longest_edge": edge}}


def _pixels(images: Any, size: Mapping[str, int], pixels: int, least: int, most: int | None) -> Iterator[ImageSettings]:
    """Yield settings in pixels. GLM-4V repeats an image as several frames, and its limits count the pixels of all."""
    for frames in (getattr(images, "temporal_patch_size", 1), 1):
        longest = size["longest_edge"] if most is None else most * pixels * frames
        shortest = least * pixels * frames if least else min(size["shortest_edge"], longest)
        yield {"size": {**size, "shortest_edge": shortest, "longest_edge": longest}}


def _grids(pinpoints: list[list[int]], least: int) -> Iterator[ImageSettings]:
    """Yield lists of grids whose area is at most some value and, if there is a minimum, at least some value."""
    areas = sorted({height * width for height, width in pinpoints})
    for highest in reversed(areas):
        for lowest in areas[: areas.index(highest) + 1] if least else areas[:1]:
            yield {IN_MODEL: [[h, w] for h, w in pinpoints if lowest <= h * w <= highest]}


def _set(images: Any, settings: ImageSettings) -> None:
    for name, value in settings.items():
        own = getattr(images, name)
        setattr(images, name, type(own)(**value) if is_dataclass(own) and isinstance(value, dict) else value)


def _plain(value: Any) -> Any:
    """A value as it stands in a file: a `SizeDict` becomes a dict without the sizes that are not set."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return {k: v for k, v in asdict(value).items() if v is not None}
