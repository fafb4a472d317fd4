"""Tiny random checkpoints of many families, made by the official classes of transformers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from packaging.version import Version
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from . import blip, continuing, deepseek, gemma, molmo, others, qwen, tiled, unified
from .recipe import Recipe

MODULES = (qwen, tiled, gemma, others, deepseek, blip, unified, continuing, molmo)
RECIPES: dict[str, Recipe] = {name: recipe for module in MODULES for name, recipe in module.RECIPES.items()}
"""Name of a family -> how its checkpoint is made."""
TOO_OLD = {name for name, recipe in RECIPES.items() if Version(version("transformers")) < Version(recipe.since)}
"""Families that have to be refused with the installed transformers."""


def make(name: str, folder: Path, seed: int = 0, *, text_config: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint of a family, with weights drawn by `seed`.

    Args:
        text_config: what of the language model's config is to be otherwise.

    Raises:
        ImportError: if the family's processor needs a package that is not installed.
    """
    recipe = RECIPES[name]
    for package in recipe.needs:
        if find_spec(package) is None:
            raise ImportError(f"{name}: its processor needs the package {package}; pip install {package}")
    processor = recipe.make_processor()
    torch.manual_seed(seed)
    keys = recipe.config(processor)
    if text_config:
        keys["text_config"] = {**keys["text_config"], **text_config}
    config = CONFIG_MAPPING[recipe.model or name](**keys)
    model: Any = AutoModelForImageTextToText.from_config(config)
    louder(model)
    ends = processor.tokenizer.convert_tokens_to_ids(list(recipe.stops)) or None
    words, starts = processor.tokenizer, getattr(model.config.get_text_config(), "decoder_start_token_id", None)
    named = {"pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id, "decoder_start_token_id": starts}
    model.generation_config = GenerationConfig(eos_token_id=ends, **named)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def louder(model: Any) -> None:
    """Draw matrices with the variance of their width and fill zeros, so that every weight moves the logits."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif not bool(parameter.any()):
                parameter.normal_(std=0.1)


def stand_in(package: str) -> None:
    """Let `import PACKAGE` succeed in this process, for a package whose functions no test reaches."""
    if find_spec(package) is None:
        module = ModuleType(package)
        module.__spec__ = ModuleSpec(package, None)
        setattr(module, package, _refuse)
        sys.modules[package] = module
        for importer in [m for name, m in sys.modules.items() if name.startswith("transformers.")]:
            if vars(importer).get(package, module) is None:  # It was imported before, and found no such package.
                setattr(importer, package, _refuse)


def _refuse(*_: object) -> None:
    raise NotImplementedError("a package that is not installed was called")
