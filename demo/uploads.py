"""Accepts pictures that were uploaded to this page, and refuses URLs and other files of the server."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from gradio_client.utils import is_http_url_like

from mmdora.errors import MmdoraError

Examples = Sequence[tuple[Path, str]]
"""Pictures with a question each."""


def uploads_only(image: gr.Image) -> gr.Image:
    """Make an image widget refuse URLs: Gradio would fetch a URL that an API caller gives in place of a picture."""
    move = image.async_move_resource_to_block_cache

    async def move_file(url_or_file_path: Any) -> str | None:
        if is_http_url_like(str(url_or_file_path)):
            raise gr.Error("URLs are not fetched; upload the picture.", print_exception=False)
        return await move(url_or_file_path)

    image.async_move_resource_to_block_cache = move_file
    return image


def upload_paths(first: Any, second: Any) -> tuple[Path, ...]:
    """The files of the pictures that were chosen: two, one, or none for a question about no picture."""
    return tuple(upload_path(image) for image in (first, second) if image is not None)


def upload_path(image: Any) -> Path:
    """The file of a picture that was uploaded to this page.

    Raises:
        MmdoraError: if this is no file, or if the file is any other file of the server.
    """
    if not isinstance(image, dict) or not image.get("path"):
        raise MmdoraError("The picture is no upload to this page.")
    path = Path(str(image["path"])).resolve()
    # Gradio checks this only for callers who mark the path as a file.
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise MmdoraError("The picture is no upload to this page.")
    return path


def within_reach(examples: Examples) -> list[tuple[Path, str]]:
    """Copy the examples to the folder of uploads, because Gradio serves no other files."""
    folder = Path(get_upload_folder()).resolve() / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    return [
        (Path(shutil.copyfile(path, folder / f"{number}{path.suffix}")), text)
        for number, (path, text) in enumerate(examples, 1)
    ]
