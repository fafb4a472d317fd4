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
import numpy as np
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
    small, full = (mmdora.load("tiny-llava", quantize=form) for form in ("nf4", None))
    for seed in range(20):  # Most pictures have the same answer in 4 bits, and that would show nothing.
        noise = np.random.default_rng(seed).normal(128, 90, (64, 64)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).convert("RGB").save(picture)
        prompts = [ask(QUESTION, Image.fromarray(noise).convert("RGB"))]
        texts = [generate(*each, prompts, max_new_tokens=40)[0] for each in (small, full)]
        if texts[0] != texts[1]:
            break
    assert texts[0] != texts[1]
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
    ((state,),) = answers
    assert (state["name"], state["status"], state["text"]) == ("small", "done", texts[0])
