"""A server that answers anything: each answer ends in one line, in bounded time and memory."""

import gzip
import json
import socket
import threading
import time
import tracemalloc
import zlib
from contextlib import contextmanager

import pytest

from mmdora.errors import MmdoraError
from mmdora.export.verify import _there
from mmdora.families import Prompt
from mmdora.predict import endpoint, replies
from mmdora.predict.endpoint import Endpoint

PROMPT = Prompt([{"role": "user", "content": [{"type": "text", "text": "what is it? \ud800"}]}], [])
OK = b"HTTP/1.1 200 OK\r\n"
DEEP = b"[" * 100_000


@contextmanager
def answering(*pieces, pause=0.0, again=False):
    """A server that sends these bytes to everyone, piece by piece, again and again if asked to; gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve():
        while not over.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(client,), daemon=True).start()

    def talk(client):
        with client:
            try:
                client.recv(65536)
                client.sendall(pieces[0])
                while True:
                    for piece in pieces[1:]:
                        if over.wait(pause):
                            return
                        client.sendall(piece)
                    if not again:
                        client.shutdown(socket.SHUT_WR)
                        while client.recv(65536):  # Closing with bytes unread would reset the connection.
                            pass
                        return
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        over.set()
        listener.close()


def body(content, *headers):
    return OK + b"".join(h + b"\r\n" for h in headers) + b"connection: close\r\n\r\n" + content


def event(value):
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def refused(call, match):
    """The call ends in one line that can be printed."""
    begun = time.monotonic()
    with pytest.raises(MmdoraError, match=match) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and line.isprintable() and len(line) < 600
    line.encode()
    return time.monotonic() - begun


def piece(content):
    return {"choices": [{"delta": {"content": content}}]}


STREAMS = {
    "an array": ([1, 2], "no answer"),
    "a number": (5, "no answer"),
    "null": (None, "no answer"),
    "a text": ("hi", "no answer"),
    "no JSON": (b"{", "no answer"),
    "an error": ({"error": {"message": "out of\nmemory \x1b[31m"}}, "out of memory"),
    "an error of another type": ({"error": [1]}, r"\[1\]"),
    "choices are a number": ({"choices": 5}, "choices is 5"),
    "choices are an object": ({"choices": {"a": 1}}, "choices is"),
    "choices are a text": ({"choices": "abc"}, "choices is"),
    "a choice is a number": ({"choices": [5]}, r"choices\[0\] is 5"),
    "a choice is null": ({"choices": [None]}, r"choices\[0\] is None"),
    "a delta is a list": ({"choices": [{"delta": [1]}]}, "delta is"),
    "a delta is a text": ({"choices": [{"delta": "x"}]}, "delta is 'x'"),
    "content is a number": (piece(5), "content is 5"),
    "content is a list": (piece(["x"]), "content is"),
    "half a surrogate pair": (b'{"choices": [{"delta": {"content": "\\ud800"}}]}', "no answer"),
    "half a surrogate pair as a key": (b'{"\\ud800": 1}', "no answer"),
    "usage is a list": ({"usage": [1]}, "usage is"),
    "usage is a number": ({"usage": 7}, "usage is 7"),
    "tokens are a text": ({"usage": {"prompt_tokens": "5", "completion_tokens": 1}}, "number of tokens"),
    "tokens are true": ({"usage": {"prompt_tokens": True, "completion_tokens": 1}}, "number of tokens"),
    "tokens are negative": ({"usage": {"prompt_tokens": -1, "completion_tokens": 1}}, "number of tokens"),
    "tokens are huge": ({"usage": {"prompt_tokens": 10**4000, "completion_tokens": 1}}, "number of tokens"),
    "tokens are longer than Python reads": (b'{"usage": {"prompt_tokens": ' + b"1" * 5000 + b"}}", "no answer"),
    "tokens are no number": (b'{"usage": {"prompt_tokens": NaN, "completion_tokens": 1}}', "number of tokens"),
    "tokens are infinite": (b'{"usage": {"prompt_tokens": 1e999, "completion_tokens": 1}}', "number of tokens"),
    "deep": (b'{"choices": ' + DEEP + b"}", "nested deeper|no answer"),
    "deep and whole": (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "nested deeper than 32"),
    "deep objects": (b'{"a":' * 60_000 + b"1" + b"}" * 60_000, "nested deeper than 32"),
    "not UTF-8": (b'{"choices": "\xff\xfe"}', "not UTF-8"),
    "a long line": (b"x" * (replies.MAX_REPLY + 100_000), "no answer|a line of more than"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_that_are_no_answer(name):
    value, match = STREAMS[name]
    with answering(body(event(value))) as url:
        took = refused(lambda: list(Endpoint(url, "m").stream(PROMPT)), match)
    assert took < 20


MODELS = {
    "a list": (b"[]", "no answer"),
    "a number": (b"5", "no answer"),
    "null": (b"null", "no answer"),
    "no JSON": (b"<html>", "no answer"),
    "nothing": (b"", "no answer"),
    "no data": (b"{}", "no list"),
    "data is a number": (b'{"data": 5}', "no list"),
    "data is an object": (b'{"data": {"id": "x"}}', "no list"),
    "data is null": (b'{"data": null}', "no list"),
    "a model is a number": (b'{"data": [5]}', "without a name"),
    "a model is null": (b'{"data": [null]}', "without a name"),
    "a model has no id": (b'{"data": [{}]}', "without a name"),
    "an id is a list": (b'{"data": [{"id": []}]}', "without a name"),
    "an id is empty": (b'{"data": [{"id": ""}]}', "without a name"),
    "an id with half a surrogate pair": (b'{"data": [{"id": "\\ud800"}]}', "no answer"),
    "many models": (b'{"data": [' + b'{"id": "x"},' * 2_000 + b'{"id": "x"}]}', "no list of up to 1,000"),
    "names with a terminal's commands": (b'{"data": [{"id": "\\u001b[31ma"}, {"id": "b"}]}', r"serves \[31ma, b; name"),
    "deep": (DEEP, "nested deeper|no answer"),
    "deep and whole": (b'{"data": ' + b"[" * 900 + b"]" * 900 + b"}", "nested deeper"),
    "not UTF-8": (b"\xff\xfe\x00{", "no answer"),
    "large": (b"x" * (replies.MAX_REPLY + 1), "more than 1,048,576 bytes"),
}


@pytest.mark.parametrize("name", MODELS)
def test_lists_of_models_that_are_none(name):
    content, match = MODELS[name]
    with answering(body(content)) as url:
        assert refused(lambda: Endpoint.parse(url), match) < 20


HEADS = {
    "no HTTP": (b"hello\r\n\r\n", "cannot be reached"),
    "nothing": (b"", "cannot be reached"),
    "a status that is none": (b"HTTP/1.1 abc\r\n\r\n", "cannot be reached"),
    "a header that is none": (OK + b"\x00\x01\r\n\r\n", "cannot be reached"),
    "headers without end": (OK + b"a: " + b"x" * 300_000 + b"\r\n\r\n", "cannot be reached"),
    "a length that is none": (OK + b"content-length: x\r\n\r\n", "cannot be reached"),
    "a body that is cut": (OK + b"content-length: 100\r\n\r\n{", "cannot be reached"),
    "a chunk that is none": (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", "cannot be reached"),
    "a redirect": (b"HTTP/1.1 302 x\r\nlocation: file:///etc/passwd\r\n\r\n", "redirect"),
    "a redirect elsewhere": (b"HTTP/1.1 307 x\r\nlocation: http://evil.example/\r\n\r\n", "redirect"),
    "gzip": (body(gzip.compress(b"{}"), b"content-encoding: gzip"), "compressed"),
    "brotli": (body(b"\x00", b"content-encoding: br"), "compressed"),
    "a refusal": (b"HTTP/1.1 500 x\r\n\r\n<h1>oh\x1b[31m</h1>", r"refuses \(500\): <h1>oh \[31m</h1>"),
    "a refusal that is deep": (b"HTTP/1.1 500 x\r\n\r\n" + DEEP, r"refuses \(500\)"),
    "a refusal of another type": (b'HTTP/1.1 500 x\r\n\r\n{"error": {"message": {"a": [1]}}}', r"refuses \(500\)"),
    "a refusal with a surrogate": (b'HTTP/1.1 500 x\r\n\r\n{"error": "\\ud800"}', r"refuses \(500\)"),
    "a refusal that is large": (b"HTTP/1.1 500 x\r\n\r\n" + b"x" * (replies.MAX_REPLY + 1), "more than"),
    "a refusal that is not UTF-8": (b"HTTP/1.1 500 x\r\n\r\n\xff\xfe", r"refuses \(500\)"),
    "a status without body": (b"HTTP/1.1 204 x\r\n\r\n", r"refuses \(204\)"),
}


@pytest.mark.parametrize("name", HEADS)
def test_replies_that_are_none(name):
    head, match = HEADS[name]
    with answering(head) as url:
        refused(lambda: Endpoint.parse(url), match)
        refused(lambda: list(Endpoint(url, "m").stream(PROMPT)), match)


@pytest.mark.parametrize("name", ["gzip", "models", "lines", "answers", "events"])
def test_memory_is_bounded(name, monkeypatch):
    monkeypatch.setattr(replies, "MAX_STREAM", 8 * 10**6)
    compress = zlib.compressobj(9, wbits=31)
    zeros = compress.compress(b"\0" * 10**8) + compress.flush()
    stream, one = b"x" * 10**6, event(piece("x"))
    pieces = {
        "gzip": [body(b"", b"content-encoding: gzip"), zeros],
        "models": [body(b'{"data": "'), stream],
        "lines": [body(b"data: "), stream],
        "answers": [body(event(piece("red"))), event(piece("x" * 1000)) * 100],
        "events": [body(b""), one * 1000],
    }[name]
    with answering(*pieces, again=True) as url:
        tracemalloc.start()
        try:
            if name == "models" or name == "gzip":
                refused(lambda: Endpoint.parse(url), "more than|compressed")
            else:
                refused(lambda: _there(Endpoint(url, "m"), PROMPT, 8, []), "a line of more than|does not end")
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert most < 30 * 10**6


DRIPS = {
    "nothing": [b""],
    "a status": [b"HTTP/1.1 2", b""],
    "headers": [OK, b"a: b\r\n"],
    "interim answers": [b"HTTP/1.1 100 x\r\n\r\n"] * 2,
    "a body": [body(b""), b" "],
    "comments": [body(b""), b": ping\n\n"],
    "empty pieces": [body(b""), event({"choices": [{"delta": {}}]})],
    "words": [body(b""), event(piece("x"))],
}


@pytest.mark.parametrize("name", DRIPS)
def test_a_drip_ends(name, monkeypatch):
    monkeypatch.setattr(endpoint, "MODELS_TIME", 1.0)
    monkeypatch.setattr(endpoint, "START_TIME", 1.0)
    monkeypatch.setattr(endpoint, "TOKEN_TIME", 0.0)
    with answering(*DRIPS[name], *[b""] * (name == "nothing"), pause=0.1, again=True) as url:
        assert refused(lambda: list(Endpoint(url, "m").stream(PROMPT)), "longer than 1 s") < 20
        if name not in ("comments", "empty pieces", "words"):
            assert refused(lambda: Endpoint.parse(url), "longer than 1 s") < 20
        until = time.monotonic() + 20
        while any(thread.name == "mmdora-endpoint" for thread in threading.enumerate()):
            assert time.monotonic() < until, "a thread still waits for the server"
            time.sleep(0.05)


@pytest.mark.parametrize(
    "spec",
    ["http://[::1/v1#m", "http://host:99999/v1#m", "http://host:x/v1#m", "http://ho st/v1#m", "http://host\x00/v1#m",
     "http://" + "a" * 64 + ".example/v1#m", "http://host/\x01v1#m", "file:///v1#m", "http://a..b/v1#m", "http://host:0/v1#m"],
)  # fmt: skip
def test_urls_that_no_client_can_ask(spec):
    refused(lambda: Endpoint.parse(spec), "expected http://HOST:PORT/v1#MODEL")
