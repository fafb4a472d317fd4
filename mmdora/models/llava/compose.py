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

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    set_seed,
)

from mmdora.config import Compose
from mmdora.errors import MmdoraError
from mmdora.families import family_of
from mmdora.files import partial_path
from mmdora.models.llava.assemble import assemble
from mmdora.models.llava.templates import AS_TEXT, IMAGE, LLAVA_V1
from mmdora.models.llava.tower import open_tower

RECIPE = "compose.json"
"""The file beside a composed base that says what it was composed of."""


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
                f"{folder}: is there, and was composed of other parts or with another seed than model.compose "
                "and training.seed; remove it, or give another training.output"
            )
        return
    say(f"composing {recipe.vision} and {recipe.language} into {folder}")
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    for part in compose(recipe, seed=seed):
        part.save_pretrained(partial)
    (partial / RECIPE).write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
    partial.rename(folder)


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
            raise MmdoraError("the chat template does not write the text of every message")
    except MmdoraError as error:
        raise MmdoraError(f"{where}: {error}; set model.compose.template: llava_v1") from None
