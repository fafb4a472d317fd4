"""Adds to an export what is no weight: other files of the base, and image tokens, stops and template of the run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, GenerationConfig

from mmdora.config import ImageTokens
from mmdora.errors import MmdoraError
from mmdora.export.base import copied_files
from mmdora.families import Family, family_of
from mmdora.files import read_json, write_json
from mmdora.models.chat_template import write_template
from mmdora.models.image_tokens import set_image_tokens, write_image_tokens
from mmdora.models.load import load_processor
from mmdora.models.locate import Location


def complete(folder: Path, base: Path, location: Location) -> None:
    """Add the base's other files, with the number of image tokens that the adapter was trained with."""
    for path in copied_files(base):
        (folder / path.relative_to(base)).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / path.relative_to(base))
    if location.image_tokens != ImageTokens():
        write_image_tokens(folder, set_image_tokens(load_processor(location.base), location.image_tokens))
    if location.adapter is not None:
        family = family_of(load_processor(location.base, template=location.template))
        _write_stops(folder, family)
        _write_template(folder, family)


def _write_stops(folder: Path, family: Family) -> None:
    """Let generation stop at the end of turn that training taught, beside what the base's own file names."""
    path = folder / "generation_config.json"
    tree = read_json(path, "generation config") if path.is_file() else {}
    own = GenerationConfig(eos_token_id=tree.get("eos_token_id"))
    if (stops := family.ending.stops(own)) != family.ending.base_stops(own):
        write_json(path, tree | {"eos_token_id": stops})


def _write_template(folder: Path, family: Family) -> None:
    """Give the export the template by which the model was trained, if the files of its base hold another or none.

    Raises:
        MmdoraError: if stock transformers reads another template from the written files.
    """
    template = family.processor.chat_template
    if template is None or _stock_template(folder, family) == template:
        return
    write_template(folder, template)
    if _stock_template(folder, family) != template:
        raise MmdoraError(f"{folder}: the chat template cannot be written into its files")


def _stock_template(folder: Path, family: Family) -> Any:
    """The chat template that stock transformers reads from a checkpoint; some processors leave it to the tokenizer."""
    reader = (AutoProcessor if family.sees else AutoTokenizer).from_pretrained(folder)
    return reader.chat_template or getattr(reader, "tokenizer", reader).chat_template
