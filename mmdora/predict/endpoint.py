"""Streams answers from a model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp)."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import httpx
from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.families import Prompt
from mmdora.html import data_uri
from mmdora.predict.answers import Partial

TIMEOUT = httpx.Timeout(60.0, connect=5.0)  # Seconds. A long prompt may take most of a minute until the first byte.
POLL = 0.1  # Seconds between two looks at `stop`: a person who stops an answer notices no delay.
MAX_LINE = 2**20  # Characters of one event: far more than a token needs, so that no server can fill the memory.
MAX_TEXT = 100_000  # Characters of one answer: more than any `max_new_tokens` in use, against endless answers.


@dataclass(frozen=True)
class Usage:
    """The numbers of tokens of a prompt and its answer, as the server counts them."""

    prompt: int
    answer: int


@dataclass(frozen=True)
class Endpoint:
    """A model on a server: the server's `url` (ending in /v1) and the model's name there.

    No other host is ever asked: redirects are not followed, and proxies are not used.
    """

    url: str
    model: str

    @classmethod
    def parse(cls, spec: str) -> Endpoint:
        """Read `http://HOST/v1#MODEL`; without #MODEL the server must serve exactly one model.

        Raises:
            MmdoraError: if this is no such URL, if the server does not answer, or if it serves several models.
        """
        url, _, model = spec.partition("#")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise MmdoraError(f"{spec!r}: expected http://HOST:PORT/v1#MODEL")
        url = url.rstrip("/")
        if not model:
            served = cls(url, "")._models()
            if len(served) != 1:
                raise MmdoraError(f"{spec!r}: serves {', '.join(served) or 'no model'}; name one, as in {url}#MODEL")
            model = served[0]
        return cls(url, model)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: threading.Event | None = None,
        usage: list[Usage] | None = None,
    ) -> Generator[Partial, None, None]:
        """Yield the answer piece by piece, like `predict.stream`; pictures are sent as PNG.

        Each piece counts as one token until the server gives its own count at the end. Closing the iterator or setting
        `stop` closes the connection, which makes servers stop generating.

        Args:
            usage: receives the server's token counts, if it gives them.

        Raises:
            MmdoraError: if the server cannot be reached, refuses, redirects, or sends something that is no answer.
        """
        body = {
            "model": self.model,
            "messages": _messages(prompt),
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        pieces: SimpleQueue[tuple[float, Any]] = SimpleQueue()
        begun, times, text, counted = time.perf_counter(), [], "", None
        client = self._client()

        def read() -> None:
            try:
                for event in self._events(client, body):
                    pieces.put((time.perf_counter(), event))
                pieces.put((0.0, None))
            except BaseException as error:  # The error goes to the thread of the caller, which raises it there.
                pieces.put((0.0, error))

        threading.Thread(target=read, name="mmdora-endpoint", daemon=True).start()
        try:
            while not (stop is not None and stop.is_set()):
                try:
                    at, event = pieces.get(timeout=POLL)
                except Empty:
                    continue
                if isinstance(event, BaseException):
                    raise event
                if event is None:
                    break
                if found := _usage(event):
                    counted = found
                if piece := _piece(event):
                    times.append(at)
                    if len(text := text + piece) > MAX_TEXT:
                        raise MmdoraError(f"{self.host}: the answer does not end ({MAX_TEXT:,} characters so far)")
                    yield Partial.timed(text, len(times), begun, times)
            if counted is not None and usage is not None:
                usage.append(counted)
            yield Partial.timed(text, counted.answer if counted else len(times), begun, times)
        finally:
            with suppress(Exception):
                client.close()

    def _client(self) -> httpx.Client:
        return httpx.Client(timeout=TIMEOUT, follow_redirects=False, trust_env=False)

    def _events(self, client: httpx.Client, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with _told(self.host), client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise MmdoraError(f"{self.host}: {_refusal(response)}")
            for line in _lines(response):
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:"):
                    continue
                if data == "[DONE]":
                    return
                event = json.loads(data)
                if not isinstance(event, dict) or event.get("error"):
                    raise MmdoraError(f"{self.host}: {_short(event)}")
                yield event
            raise MmdoraError(f"{self.host}: the answer breaks off")

    def _models(self) -> list[str]:
        with _told(self.host), self._client() as client:
            response = client.get(f"{self.url}/models")
            if response.status_code != 200:
                raise MmdoraError(f"{self.host}: {_refusal(response)}")
            return [str(model["id"]) for model in response.json()["data"]]


@contextmanager
def _told(host: str) -> Iterator[None]:
    """Turn errors of the connection and of broken replies into an MmdoraError of one line."""
    try:
        yield
    except MmdoraError:
        raise
    except httpx.TimeoutException as error:
        raise MmdoraError(f"{host}: does not answer in time ({type(error).__name__})") from None
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise MmdoraError(f"{host}: cannot be reached ({type(error).__name__}: {error})") from None
    except (ValueError, KeyError, TypeError):
        raise MmdoraError(f"{host}: sends text that is no answer of an OpenAI-compatible server") from None


def _lines(response: httpx.Response) -> Iterator[str]:
    rest = ""
    for text in response.iter_text():
        *lines, rest = (rest + text).split("\n")
        yield from (line.rstrip("\r") for line in lines)
        if len(rest) > MAX_LINE:
            raise ValueError
    yield rest


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    images = iter(prompt.images)
    return [
        {
            "role": message["role"],
            "content": [
                part if part["type"] == "text" else {"type": "image_url", "image_url": {"url": _data_uri(next(images))}}
                for part in message["content"]
            ],
        }
        for message in prompt.messages
    ]


def _data_uri(image: Image.Image) -> str:
    png = io.BytesIO()
    image.save(png, "PNG")
    return data_uri(png.getvalue())


def _piece(event: dict[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    text = (choices[0].get("delta") or {}).get("content")
    return text if isinstance(text, str) else ""


def _usage(event: dict[str, Any]) -> Usage | None:
    found = event.get("usage") or {}
    prompt, answer = found.get("prompt_tokens"), found.get("completion_tokens")
    return Usage(prompt, answer) if isinstance(prompt, int) and isinstance(answer, int) else None


def _refusal(response: httpx.Response) -> str:
    if response.is_redirect:
        return f"answers with a redirect ({response.status_code}), which is not followed"
    try:
        told = next(response.iter_text(4096), "") if not response.is_closed else response.text
    except httpx.StreamConsumed:
        told = response.text
    with suppress(ValueError, TypeError, AttributeError):
        values = json.loads(told)
        told = (values.get("error") or values).get("message") or told
    return f"refuses ({response.status_code}): {_short(told)}"


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:200]
