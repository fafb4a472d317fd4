"""A small OpenAI-compatible server on the loopback, which can answer with a checkpoint run by stock transformers."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

Answer = tuple[Any, ...]
"""Pieces of text, number of prompt tokens, number of answer tokens; if the server can give token ids, as vLLM does
where `return_token_ids` asks for them, also those of the prompt and those of the answer."""


class Stub(ThreadingHTTPServer):
    """The server. It keeps all requests in `asked`.

    `mode` is ok, or a fault: redirect, refuse, hang, html, cut, or silent (which sends no token counts).
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any]], Answer], models: list[str], mode: str = "ok"):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.models, self.mode = answer, models, mode
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.left = threading.Event()  # This is set when a client goes away in the middle of an answer.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Stub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self._json(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body)
        mode = self.server.mode
        if mode == "redirect":
            self.send_response(307)
            self.send_header("location", f"{self.server.url}/elsewhere")
            self.send_header("content-length", "0")
            return self.end_headers()
        if mode == "refuse":
            return self._json(400, {"error": {"message": "maximum context\nlength is 4096"}})
        pieces, prompt, answer, *ids = self.server.answer(body)
        prompt_ids, answer_ids = ids if ids and body.get("return_token_ids") else (None, None)
        self.send_response(200)
        self.send_header("content-type", "text/html" if mode == "html" else "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        if mode == "html":
            self.wfile.write(b"data: <html>no JSON</html>\n\n")
            return
        try:
            if prompt_ids is not None:
                role = {"index": 0, "delta": {"role": "assistant", "content": ""}}
                self._event({"choices": [role], "prompt_token_ids": prompt_ids})
            for number, piece in enumerate(pieces):
                choice = {"index": 0, "delta": {"content": piece}}
                if answer_ids is not None:
                    last = number == len(pieces) - 1
                    choice["token_ids"] = answer_ids[number:] if last else answer_ids[number : number + 1]
                self._event({"choices": [choice]})
                while mode == "hang":
                    time.sleep(0.05)
                    self._event({"choices": [{"index": 0, "delta": {}}]})
            if mode == "cut":
                return
            if mode != "silent":
                usage = {"prompt_tokens": prompt, "completion_tokens": answer}
                self._event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.left.set()

    def _event(self, values: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(values)}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, values: dict[str, Any]) -> None:
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Answer], *models: str, mode: str = "ok") -> Iterator[Stub]:
    """Run a stub that serves these models (by default one, named "mine") until the end of the block."""
    stub = Stub(answer, list(models) or ["mine"], mode)
    thread = threading.Thread(target=stub.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        stub.server_close()


def checkpoint(folder: str) -> Callable[[dict[str, Any]], Answer]:
    """A function for `Stub` that gives the greedy answers of a checkpoint."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)

    def answer(body: dict[str, Any]) -> Answer:
        images, messages = [], []
        for message in body["messages"]:
            parts = []
            for part in message["content"]:
                if part["type"] == "image_url":
                    data = base64.b64decode(part["image_url"]["url"].partition("base64,")[2])
                    images.append(Image.open(io.BytesIO(data)))
                    parts.append({"type": "image"})
                else:
                    parts.append(part)
            messages.append({"role": message["role"], "content": parts})
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(text=text, images=images, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=body["max_tokens"], do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        words = processor.tokenizer.decode(new, skip_special_tokens=True).split(" ")
        pieces, asked = (
            [word if i == 0 else f" {word}" for i, word in enumerate(words)],
            inputs["input_ids"][0].tolist(),
        )
        return pieces, len(asked), len(new), asked, new.tolist()

    return answer
