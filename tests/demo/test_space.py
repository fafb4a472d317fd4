"""`examples/space/app.py` serves the page as a Space would: under the Space's name, in a frame of huggingface.co."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
from demo_page import free_port

SPACE = Path(__file__).parents[2] / "examples" / "space"
NAME = "anna-compared.hf.space"
FRAMED = {"host": NAME, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}


def test_the_app_of_a_space_serves_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, because a new one takes seconds to import Gradio."""
    handler, port, answers = signal.getsignal(signal.SIGTERM), free_port(), list[httpx.Response]()
    monkeypatch.setenv("PORT", str(port))
    monkeypatch.setenv("SPACE_HOST", NAME)

    def visit() -> None:
        while signal.getsignal(signal.SIGTERM) is handler:
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            while not answers:
                with contextlib.suppress(httpx.ConnectError):
                    answers.append(http.get("/", headers=FRAMED))
            answers.append(http.get("/config", headers={"host": NAME}))
            answers.append(http.get("/config", headers={"host": "elsewhere.example.org"}))
        os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit, daemon=True)
    visitor.start()
    runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    visitor.join()
    page, config, other = answers
    assert page.status_code == 200 and "x-frame-options" not in page.headers
    assert page.headers["content-security-policy"].endswith("frame-ancestors https://huggingface.co")
    assert config.status_code == 200 and all(name in config.text for name in ("LoRA", "DoRA"))
    assert other.status_code == 400


def test_a_space_finds_what_its_files_name() -> None:
    head = (SPACE / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert "sdk: gradio" in head and "app_file: app.py" in head
    assert "mmdora" in (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
