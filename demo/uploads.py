"""Accepts pictures that were uploaded to this page, and refuses URLs and other files of the server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from gradio.utils import get_upload_folder
from gradio_client.utils import is_http_url_like

from mmdora.demo.pictures import shown_by_browsers
from mmdora.errors import MmdoraError
from mmdora.files import sha256
from mmdora.records.images import FileRef, image_bytes

Examples = Sequence[tuple[Path | FileRef, str]]
"""Pictures with a question each."""
Widget = TypeVar("Widget", gr.Image, gr.File)


def without_paths(message: str) -> str:
    """A message without folders: it must not tell where the server keeps a file."""
    return re.sub(r"[^\s'\"]*/", "", message)


def uploads_only(image: Widget) -> Widget:
    """Make a widget refuse URLs: Gradio would fetch a URL that an API caller gives in place of a file."""
    move = image.async_move_resource_to_block_cache

    async def move_file(url_or_file_path: Any) -> str | None:
        if is_http_url_like(str(url_or_file_path)):
            raise gr.Error("URLs are not fetched; upload the file.", print_exception=False)
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


async def received(picture: Any) -> Any:
    """Check a picture as soon as it is uploaded. One that browsers do not show, such as HEIC, becomes a PNG.

    A picture that cannot be used is taken off the page again, with a message that says why.
    """
    try:
        path = upload_path(picture)
        return str(await asyncio.to_thread(shown_by_browsers, path))
    except MmdoraError as error:
        gr.Warning(without_paths(str(error)))
        return None


def within_reach(examples: Examples) -> list[tuple[Path, str]]:
    """Copy the examples to the folder of uploads, because Gradio serves no other files."""
    pictures = [own if isinstance(own, FileRef) else FileRef(own.name, own.parent) for own, _ in examples]
    return [(path, text) for path, (_, text) in zip(keep_pictures(pictures), examples, strict=True)]


def keep_pictures(pictures: Iterable[FileRef]) -> list[Path]:
    """Copy pictures to the folder of uploads, each below a folder that is named after its content.

    Raises:
        MmdoraError: if one cannot be read.
    """
    paths = []
    for picture in pictures:
        content, _ = image_bytes(picture)
        path = Path(get_upload_folder()).resolve() / sha256(content) / Path(picture.name).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        paths.append(path)
    return paths
