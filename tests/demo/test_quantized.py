"""`mmdora demo --quantize nf4`: the command's page answers by the quantised model."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from demo_page import free_port
from gradio_client import Client, handle_file
from PIL import Image

import mmdora
from mmdora.cli import main
from mmdora.families import ask
from mmdora.predict.answers import generate

pytest.importorskip("bitsandbytes", reason="pip install 'mmdora[quantize]'")

QUESTION = "what color is the shape?"


def test_the_page_answers_in_4_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(picture)
    handler, port, answers = signal.getsignal(signal.SIGTERM), free_port(), list[Any]()

    def visit() -> None:
        while signal.getsignal(signal.SIGTERM) is handler:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{port}/"
        try:
            while True:
                with contextlib.suppress(httpx.ConnectError):
                    httpx.get(url, timeout=60)
                    break
            client = Client(url, verbose=False, analytics_enabled=False)
            asked = {"image": handle_file(picture), "question": QUESTION, "max_tokens": 40}
            answers.append(client.predict(**asked, api_name="/compare"))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit, daemon=True)
    visitor.start()
    command = ["demo", "small=tiny-llava", "--quantize", "nf4", "--device", "cpu", "--port", str(port)]
    assert main(command) == 0
    visitor.join()
    assert "small: base in nf4, 2.2 M parameters" in capsys.readouterr().out
    with Image.open(picture) as image:
        prompts = [ask(QUESTION, image.convert("RGB"))]
    ((state,),) = answers
    texts = [
        generate(*mmdora.load("tiny-llava", quantize=form), prompts, max_new_tokens=40)[0] for form in ("nf4", None)
    ]
    assert (state["name"], state["status"], state["text"]) == ("small", "done", texts[0])
    assert texts[0] != texts[1]
