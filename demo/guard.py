"""Limits the bytes and the time of every request's body before Gradio reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse

from mmdora.demo.pictures import MAX_UPLOAD
from mmdora.demo.upload_cache import PARTS, UploadCache

MAX_BODY = 200_000  # Bytes of a request that is no upload; the longest question and all settings need far less.
MAX_REQUEST = 2 * MAX_UPLOAD + 10_000  # Bytes of an upload: the two pictures of a question and what frames them.
PATIENCE = 120.0  # Seconds for a body to arrive: 20 MB at 1.4 Mbit/s.


class Guard:
    """ASGI middleware that limits bodies, and keeps the cache of uploads below its caps.

    Args:
        app: the application that gets the requests.
        cache: cache of uploads.
    """

    def __init__(self, app: Any, cache: UploadCache):
        self.app, self.cache = app, cache

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        upload = scope["path"].rstrip("/").endswith("/upload")
        most = MAX_REQUEST if upload else MAX_BODY
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        size = int(length) if length.isdigit() else most  # A body in chunks may be as large as is allowed.
        if size > most:
            told = f"The request is over the maximum allowed size of {most:,} bytes."
            return await PlainTextResponse(told, 413)(scope, receive, send)
        if upload:
            return await self._upload(scope, receive, send, size, headers.get(b"content-type", b""))
        await self.app(scope, _limited(receive, most, _refuse), send)

    async def _upload(self, scope: Any, receive: Any, send: Any, size: int, kind: bytes) -> None:
        if not await self.cache.reserve(scope, size):
            busy = PlainTextResponse("Too many uploads at once; try again in a moment.", 503, {"retry-after": "5"})
            return await busy(scope, receive, send)
        try:
            read = _limited(receive, MAX_REQUEST, _break_off)
            if boundary := parse_options_header(kind)[1].get(b"boundary"):
                read = _checked_parts(read, boundary)
            await self.app(scope, read, send)
        finally:
            await self.cache.release(scope)


def _limited(receive: Any, most: int, refuse: Callable[[int, str], Exception]) -> Any:
    """Wrap `receive` so that a body over `most` bytes, or one that takes too long, ends in the error of `refuse`."""
    total, until, whole = 0, asyncio.get_running_loop().time() + PATIENCE, False

    async def read() -> Any:
        nonlocal total, whole
        if whole:  # The application only waits to see whether the visitor leaves.
            return await receive()
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            raise refuse(408, f"The request took over {PATIENCE:.0f} s to arrive.") from None
        if message["type"] == "http.disconnect":
            raise refuse(400, "The request broke off.")
        total += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if total > most:
            raise refuse(413, f"The request is over the maximum allowed size of {most:,} bytes.")
        return message

    return read


def _checked_parts(receive: Any, boundary: bytes) -> Any:
    """Wrap `receive` so that a body of more than `PARTS` parts, or with a part that Gradio would forget, is refused.

    Gradio writes every part that has a file name to the disk, but takes only those named `files` into its cache; what
    it forgets would stay there, and no request would account for it.
    """
    parts, field, value, disposition = 0, b"", b"", b""

    def begin() -> None:
        nonlocal parts, disposition
        parts, disposition = parts + 1, b""
        if parts > PARTS:
            raise _break_off(413, f"The request has more parts than the maximum allowed size of {PARTS}.")

    def add_field(data: bytes, start: int, end: int) -> None:
        nonlocal field
        field += data[start:end]

    def add_value(data: bytes, start: int, end: int) -> None:
        nonlocal value
        value += data[start:end]

    def end_header() -> None:
        nonlocal field, value, disposition
        if field.lower() == b"content-disposition":
            disposition = value
        field, value = b"", b""

    def end_headers() -> None:
        if parse_options_header(disposition)[1].get(b"name") != b"files":
            raise _break_off(400, 'An upload has parts that are named "files", and no others.')

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": add_field,
                "on_header_value": add_value,
                "on_header_end": end_header,
                "on_headers_finished": end_headers,
            },
        )
    except FormParserError as error:
        raise _refuse(400, str(error)) from None

    async def read() -> Any:
        message = await receive()
        try:
            parser.write(message.get("body", b""))
        except FormParserError as error:
            raise _break_off(400, f"Could not parse the request: {error}") from None
        return message

    return read


def _refuse(status: int, told: str) -> Exception:
    return HTTPException(status, told)


def _break_off(_status: int, told: str) -> Exception:
    """The error at which Gradio removes the files of an upload that it has begun to write."""
    return MultiPartException(told)
