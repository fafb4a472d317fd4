"""Reads what a server replies, within limits of bytes, time and depth, whatever it sends."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, Full, Queue
from typing import Any, TypeVar

import httpx

from mmdora.errors import MmdoraError

TIMEOUT = httpx.Timeout(60.0, connect=5.0)  # Seconds. A long prompt may take most of a minute until the first byte.
POLL = 0.1  # Seconds between two looks at `stop`: a person who stops an answer notices no delay.
MAX_REPLY = 2**20  # Bytes of a reply that is read at once, a list of models or an error, and of one line of a stream.
MAX_STREAM = 2**26  # Bytes of one streamed answer: 100,000 characters in events of 600 bytes each.
MAX_DEPTH = 32  # Levels of nesting; answers of OpenAI's API have six.
HEADERS = {"accept-encoding": "identity"}  # A compressed reply could be thousands of times its size.

Value = TypeVar("Value")


def in_time(
    host: str, read: Callable[[httpx.Client], Iterator[Value]], seconds: float, stop: threading.Event | None = None
) -> Generator[tuple[float, Value], None, None]:
    """Yield what `read` yields, which runs in a thread of its own, each with the time at which it came.

    Closing the iterator, `stop` or the deadline closes the connection, even while the server sends nothing, or headers
    without end.

    Args:
        host: the server's name, for messages.
        read: function that reads from a client.
        seconds: time for all of it.
        stop: ends the iteration when it is set.

    Raises:
        MmdoraError: in one line, if the time is over, the server cannot be reached, or `read` fails.
    """
    values: Queue[tuple[float, Any]] = Queue(64)  # A server that sends faster than we read has to wait.
    over, connection, end = threading.Event(), _Connection(), object()
    until = time.monotonic() + seconds
    client = _client(connection)

    def put(value: Any) -> None:
        while not over.is_set():
            with suppress(Full):
                return values.put((time.perf_counter(), value), timeout=POLL)

    def work() -> None:
        try:
            with _told(host):
                for value in read(client):
                    put(value)
                    if over.is_set():
                        return
            put(end)
        except BaseException as error:  # The error goes to the thread of the caller, which raises it there.
            put(error)

    threading.Thread(target=work, name="mmdora-endpoint", daemon=True).start()
    try:
        while not (stop is not None and stop.is_set()):
            if time.monotonic() > until:
                raise MmdoraError(f"{host}: the answer takes longer than {seconds:.0f} s")
            try:
                at, value = values.get(timeout=POLL)
            except Empty:
                continue
            if isinstance(value, BaseException):
                raise value
            if value is end:
                return
            yield at, value
    finally:
        over.set()
        connection.cut()
        with suppress(Exception):
            client.close()


def _client(connection: _Connection) -> httpx.Client:
    hooks: dict[str, list[Callable[..., Any]]] = {"request": [connection.follow]}
    return httpx.Client(timeout=TIMEOUT, follow_redirects=False, trust_env=False, headers=HEADERS, event_hooks=hooks)


class _Connection:
    """The socket of a client's connection, which can be cut while another thread waits for it."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def follow(self, request: httpx.Request) -> None:
        request.extensions["trace"] = self._trace

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")

    def cut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


@contextmanager
def _told(host: str) -> Iterator[None]:
    """Turn errors of the connection and of broken replies into an MmdoraError of one line."""
    try:
        yield
    except MmdoraError as error:
        raise MmdoraError(f"{host}: {error}") from None
    except httpx.TimeoutException as error:
        raise MmdoraError(f"{host}: does not answer in time ({type(error).__name__})") from None
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
        raise MmdoraError(f"{host}: cannot be reached ({type(error).__name__}: {short(error)})") from None
    except UnicodeDecodeError:
        raise MmdoraError(f"{host}: sends text that is not UTF-8") from None


def whole(response: httpx.Response, most: int = MAX_REPLY) -> bytes:
    """The body of a reply of at most `most` bytes.

    Raises:
        MmdoraError: if it is longer, or compressed.
    """
    body = bytearray()
    for part in _parts(response):
        body += part
        if len(body) > most:
            raise MmdoraError(f"sends more than {most:,} bytes")
    return bytes(body)


def lines(response: httpx.Response) -> Iterator[str]:
    """The lines of a stream as they come, without their ends.

    Raises:
        MmdoraError: if a line is longer than `MAX_REPLY` or the stream longer than `MAX_STREAM` bytes, or compressed.
        UnicodeDecodeError: if a line is not UTF-8.
    """
    rest, total = bytearray(), 0
    for part in _parts(response):
        total += len(part)
        if total > MAX_STREAM:
            raise MmdoraError(f"the answer does not end ({MAX_STREAM:,} bytes so far)")
        rest += part
        if b"\n" in part:
            *ended, rest = rest.split(b"\n")
            yield from (line.decode().rstrip("\r") for line in ended)
        if len(rest) > MAX_REPLY:
            raise MmdoraError(f"sends a line of more than {MAX_REPLY:,} bytes")
    yield rest.decode()


def _parts(response: httpx.Response) -> Iterator[bytes]:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise MmdoraError("sends a compressed reply, which was not asked for")
    return response.iter_raw()


def parse(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        MmdoraError: if it is no JSON, no object, nested deeper than `MAX_DEPTH`, or holds half a surrogate pair, which
            no file or terminal can take.
    """
    try:
        value = json.loads(text)
        level, depth = [value], 0
        while level:
            if (depth := depth + 1) > MAX_DEPTH:
                raise MmdoraError(f"sends JSON that is nested deeper than {MAX_DEPTH} levels")
            level = [inner for outer in level for inner in _inside(outer)]
    except RecursionError:
        raise MmdoraError(f"sends JSON that is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        if isinstance(error, MmdoraError):
            raise
        raise MmdoraError(f"sends text that is no answer of an OpenAI-compatible server: {short(text)!r}") from None
    if not isinstance(value, dict):
        raise MmdoraError(f"sends text that is no answer of an OpenAI-compatible server: {short(text)!r}")
    return value


def _inside(value: Any) -> list[Any]:
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    for text in inner:
        if isinstance(text, str):
            text.encode()  # Half a surrogate pair is a ValueError here.
    return [item for item in inner if isinstance(item, (dict, list))]


def short(value: Any) -> str:
    """A value's text in one line of at most 200 characters, without what a terminal would obey."""
    text = value[:1_000].decode(errors="replace") if isinstance(value, bytes) else str(value)[:1_000]
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
