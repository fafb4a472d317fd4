"""A chat template of the user's own, `data.template`: its file, the processor that gets it, and an export's files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.files import read_json, read_text, write_json, write_whole

FILE = "chat_template.jinja"
"""Where transformers and serving engines look for the template of a checkpoint."""


def read_template(path: Path | None) -> str | None:
    """The text of a template's file; None without a file.

    Raises:
        MmdoraError: if there is no such file, or no text in it.
    """
    if path is None:
        return None
    try:
        text = read_text(path, "chat template")
    except MmdoraError as error:
        raise MmdoraError(f"data.template: {error}") from None
    if not text.strip():
        raise MmdoraError(f"data.template: {path}: is empty; write into it how a conversation becomes a text")
    return text


def set_template(processor: Any, template: str | None) -> None:
    """Let a processor write conversations by this template; None leaves it its own."""
    if template is not None:
        processor.chat_template = template


def write_template(folder: Path, template: str) -> None:
    """Make this template the only one in the files of a checkpoint."""
    (folder / "chat_template.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    for name in ("tokenizer_config.json", "processor_config.json"):
        if (folder / name).is_file() and "chat_template" in (tree := read_json(folder / name, "configuration")):
            write_json(folder / name, {key: value for key, value in tree.items() if key != "chat_template"})
    write_whole(folder / FILE, template)
