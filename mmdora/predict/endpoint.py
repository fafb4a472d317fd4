"""Streams answers from a model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp)."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import httpx
from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.families import Prompt
from mmdora.html import data_uri
from mmdora.predict.answers import Partial
from mmdora.predict.chat_events import Event, Usage, reason_of
from mmdora.predict.replies import in_time, lines, parse, short, whole

MAX_TEXT = 100_000  # Characters of one answer: more than any `max_new_tokens` in use, against endless answers.
MAX_MODELS = 1_000  # Most models of a server's list.
MODELS_TIME = 20.0  # Seconds for the list of models.
START_TIME, TOKEN_TIME = 120.0, 2.0  # Seconds for an answer to begin, and for each of its tokens: a slow CPU's pace.


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
        if not _is_server(url):
            raise MmdoraError(f"{spec!r}: expected http://HOST:PORT/v1#MODEL")
        url = url.rstrip("/")
        if not model:
            served = cls(url, "")._models()
            if len(served) != 1:
                names = short(", ".join(served)) or "no model"
                raise MmdoraError(f"{spec!r}: serves {names}; name one, as in {url}#MODEL")
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
            usage: receives the server's token counts, if it gives them. The server is then asked for token ids too.

        Raises:
            MmdoraError: if the server cannot be reached, refuses, redirects, is too slow, or sends something that is no
                answer.
        """
        begun, times, text, counted = time.perf_counter(), [], "", None
        tokens = _Tokens()
        body = self._body(prompt, max_new_tokens, temperature, top_p, seed, with_ids=usage is not None)
        seconds = START_TIME + TOKEN_TIME * max_new_tokens
        events = in_time(self.host, lambda client: self._events(client, body), seconds, stop)
        try:
            for at, event in events:
                counted = event.usage or counted
                tokens.add(event)
                if len(tokens.answer) > MAX_TEXT:
                    raise MmdoraError(f"{self.host}: the answer does not end ({MAX_TEXT:,} tokens so far)")
                if event.text:
                    times.append(at)
                    if len(text := text + event.text) > MAX_TEXT:
                        raise MmdoraError(f"{self.host}: the answer does not end ({MAX_TEXT:,} characters so far)")
                    yield Partial.timed(text, len(times), begun, times)
        finally:
            events.close()
        if counted is not None and usage is not None:
            usage.append(tokens.of(counted))
        yield Partial.timed(text, counted.answer if counted else len(times), begun, times)

    def _body(
        self, prompt: Prompt, max_new_tokens: int, temperature: float, top_p: float, seed: int, *, with_ids: bool
    ) -> bytes:
        """The request as JSON; in ASCII, so that half a surrogate pair in a question is no error here."""
        values = {
            "model": self.model,
            "messages": _messages(prompt),
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if with_ids:
            values["return_token_ids"] = True  # vLLM's; SGLang and llama.cpp ignore what they do not know.
        return json.dumps(values).encode()

    def _events(self, client: httpx.Client, body: bytes) -> Iterator[Event]:
        headers = {"content-type": "application/json"}
        with client.stream("POST", f"{self.url}/chat/completions", content=body, headers=headers) as response:
            _check_accepted(response)
            for line in lines(response):
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:"):
                    continue
                if data == "[DONE]":
                    return
                yield Event.parse(parse(data))
            raise MmdoraError("the answer breaks off")

    def _models(self) -> list[str]:
        def read(client: httpx.Client) -> Iterator[list[str]]:
            with client.stream("GET", f"{self.url}/models") as response:
                _check_accepted(response)
                yield _names(parse(whole(response)))

        (served,) = (names for _, names in in_time(self.host, read, MODELS_TIME))
        return served


class _Tokens:
    """The token ids of a prompt and its answer, as the events of a stream bring them."""

    def __init__(self) -> None:
        self.prompt: tuple[int, ...] | None = None
        self.answer: list[int] = []
        self.told = False

    def add(self, event: Event) -> None:
        self.prompt = event.prompt_ids or self.prompt
        self.told = self.told or event.ids is not None
        self.answer += event.ids or ()

    def of(self, counted: Usage) -> Usage:
        """The counts, with the ids that came."""
        return replace(counted, prompt_ids=self.prompt, answer_ids=tuple(self.answer) if self.told else None)


def _names(values: dict[str, Any]) -> list[str]:
    models = values.get("data")
    if not isinstance(models, list) or len(models) > MAX_MODELS:
        raise MmdoraError(f"sends no list of up to {MAX_MODELS:,} models: {short(values)}")
    names = [model.get("id") if isinstance(model, dict) else None for model in models]
    if wrong := [model for model, name in zip(models, names, strict=True) if not isinstance(name, str) or not name]:
        raise MmdoraError(f"sends a model without a name: {short(wrong[0])}")
    return [str(name) for name in names]


def _is_server(url: str) -> bool:
    """Whether this is the URL of a server, without a name, password or query in it."""
    try:
        parts, sent = urlsplit(url), httpx.URL(url)
        asked = parts.scheme in ("http", "https") and bool(parts.hostname) and sent.host == parts.hostname
        len(sent.host.encode("idna"))
        return asked and not parts.username and not parts.query and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        return False


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    if prompt.videos:
        raise MmdoraError("a server is asked about pictures only here; leave records with videos out")
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


def _check_accepted(response: httpx.Response) -> None:
    """Raise an MmdoraError if the server refuses or redirects; what it says is quoted."""
    if response.status_code == 200:
        return
    if response.is_redirect:
        raise MmdoraError(f"answers with a redirect ({response.status_code}), which is not followed")
    told = whole(response)
    try:
        reason = reason_of(parse(told))
    except MmdoraError:
        reason = short(told)  # An error may come as text or HTML.
    raise MmdoraError(f"refuses ({response.status_code}): {reason}")
