"""A page in this process, whose models are functions: it starts in a second."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from mmdora.data_prep.easy_vqa import samples
from mmdora.demo import server
from mmdora.demo.access import Access
from mmdora.demo.app import Page
from mmdora.demo.hosts import Allowed
from mmdora.demo.inside import Inside
from mmdora.demo.logins import Logins
from mmdora.demo.turns import ModelColumn
from mmdora.demo.votes import Votes
from mmdora.predict.answers import Partial


@dataclass
class Served:
    """A page that is being served, its folder of uploads and what it answers to."""

    page: Page
    folder: Path
    allowed: Allowed
    http: httpx.Client  # One for all requests, because making one takes longer than most requests do.

    @property
    def url(self) -> str:
        return str(self.page.blocks.local_url)

    @property
    def netloc(self) -> str:
        return self.url.removeprefix("http://").rstrip("/")

    def post(self, path: str, **given: Any) -> httpx.Response:
        return self.http.post(self.url + path, **given)

    def get(self, path: str = "", **given: Any) -> httpx.Response:
        return self.http.get(self.url + path, **given)

    def upload(self, *contents: bytes, **given: Any) -> httpx.Response:
        files = [("files", (f"{number}.png", content)) for number, content in enumerate(contents)]
        return self.post("gradio_api/upload", files=files, **given)

    def stored(self) -> tuple[int, int]:
        """Bytes and number of the files in the folder of uploads, which changes meanwhile."""
        sizes = []
        for parent, _, names in os.walk(self.folder):
            for name in names:
                try:
                    sizes.append(os.stat(os.path.join(parent, name)).st_size)
                except FileNotFoundError:
                    continue
        return sum(sizes), len(sizes)

    def connect(self) -> socket.socket:
        host, port = self.netloc.split(":")
        return socket.create_connection((host, int(port)), 20)

    def raw(self, text: bytes) -> str:
        """Send bytes as they stand; gives the first line of the answer."""
        with self.connect() as connection:
            connection.sendall(text)
            return connection.recv(4096).partition(b"\r\n")[0].decode()

    def login(self, name: str, password: str, **given: Any) -> int:
        return self.post("login", data={"username": name, "password": password}, **given).status_code


def png(number: int = 0, size: int = 32) -> bytes:
    """A picture of one colour, another for each number."""
    data = io.BytesIO()
    Image.new("RGB", (size, size), (number % 256, number // 256, 0)).save(data, "PNG")
    return data.getvalue()


def speak(prompt: Any, settings: Any, stop: Any) -> Iterator[Partial]:
    """A model that says "red"."""
    now = time.perf_counter()
    yield Partial.timed("red", 1, now, [now])


COLUMNS = [ModelColumn(name, "a model", "here", speak) for name in ("base", "dora")]


@contextmanager
def serving(
    columns: Sequence[ModelColumn] = COLUMNS,
    *,
    queue: int = 4,
    examples: int = 1,
    logins: dict[str, str] | None = None,
    **access: Any,
) -> Iterator[Served]:
    """Serve a page until the end of the block.

    Args:
        logins: name -> password of each account.
        access: values of `Access`; the port is a free one.
    """
    with server.upload_folder() as folder:
        page = Page(columns, samples(examples), Votes([c.name for c in columns]), Inside({}), queue=queue)
        given = Access(**{"port": free_port(), **access})
        allowed = Allowed.parse(given.host, given.allow_host, given.proxy, given.framed_by)
        try:
            server.launch(page, given, allowed, Logins(list(logins.items())) if logins else None)
            with httpx.Client(timeout=60, trust_env=False, verify=False) as http:
                yield Served(page, folder, allowed, http)
        finally:
            page.blocks.close(verbose=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
