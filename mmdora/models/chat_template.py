"""A chat template that a config asks for (`data.template`, `data.thoughts`), the processor that gets it, and an
export's files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mmdora.config import Data
from mmdora.errors import MmdoraError
from mmdora.families.thoughts import END_OF_THOUGHT, THINKS
from mmdora.files import read_json, read_text, write_json, write_whole

FILE = "chat_template.jinja"
"""Where transformers and serving engines look for the template of a checkpoint."""


def template_of(data: Data) -> str | None:
    """The chat template that a config's section `data` asks for; None leaves the base's own.

    With `data.thoughts` it begins with `THINKS`, and without a file, that is all of it.

    Raises:
        MmdoraError: if there is no such file, or no text in it.
    """
    begins = THINKS if data.thoughts else ""
    if data.template is None:
        return begins or None
    try:
        text = read_text(data.template, "chat template")
    except MmdoraError as error:
        raise MmdoraError(f"data.template: {error}") from None
    if not text.strip():
        raise MmdoraError(f"data.template: {data.template}: is empty; write into it how a conversation becomes a text")
    return begins + text


def set_template(processor: Any, template: str | None) -> None:
    """Let a processor write conversations by this template; None leaves it its own, `THINKS` begins its own.

    Raises:
        MmdoraError: thoughts are asked for, and the template knows none.
    """
    if template is None:
        return
    whole = f"{THINKS}{processor.chat_template or ''}" if template == THINKS else template
    if whole.startswith(THINKS) and END_OF_THOUGHT not in whole:
        raise MmdoraError(
            f"data.thoughts: the chat template of this base knows no thoughts (it does not name {END_OF_THOUGHT}); "
            "leave it out: what its answers hold is learned as it stands"
        )
    processor.chat_template = whole


def write_template(folder: Path, template: str) -> None:
    """Make this template the only one in the files of a checkpoint."""
    (folder / "chat_template.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    for name in ("tokenizer_config.json", "processor_config.json"):
        if (folder / name).is_file() and "chat_template" in (tree := read_json(folder / name, "configuration")):
            write_json(folder / name, {key: value for key, value in tree.items() if key != "chat_template"})
    write_whole(folder / FILE, template)
