"""Fixtures: a real headless Chromium, and a page of three models in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browser.chromium import executable
from playwright.sync_api import expect, sync_playwright

NAMES = ("base", "lora", "dora")


@dataclass
class Visit:
    """An open tab, with the hosts that it asked and the errors that it reported."""

    page: Any
    hosts: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def cards(self, status: str) -> Any:
        return self.page.locator(f".answer.{status}")

    def texts(self) -> list[str]:
        return self.page.locator(".answer .text").all_inner_texts()

    def ask(self, picture: Path | None, question: str) -> None:
        if picture is not None:
            self.page.locator("input[type=file]").first.set_input_files(picture)
            self.page.locator(".picture img").wait_for()
        box = self.page.get_by_label("Question", exact=True)
        box.fill(question)
        box.press("Enter")


@pytest.fixture(scope="session")
def executable_path() -> str:
    if (path := executable()) is None:
        message = "Chromium is not installed (make browser)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def chromium(executable_path: str) -> Iterator[Any]:
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable_path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Opens pages by `visit(url, width=…, dark=…)`. Afterwards no tab may have errors, or have asked other hosts."""
    opened = []

    def open_page(url: str, width: int = 1280, height: int = 960, dark: bool = False) -> Visit:
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        context.set_default_timeout(60_000)
        visited = Visit(context.new_page())
        opened.append((context, visited))
        page = visited.page
        page.on("request", lambda asked: visited.hosts.add(urlsplit(asked.url).netloc))
        page.on("pageerror", lambda error: visited.problems.append(str(error)))
        page.on("console", lambda told: told.type == "error" and visited.problems.append(told.text))
        page.goto(url)
        page.get_by_role("button", name="Ask", exact=True).wait_for()
        page.wait_for_timeout(500)  # While Gradio is still mounting, typed text would be lost.
        return visited

    yield open_page
    for context, visited in opened:
        context.close()
        assert visited.problems == []
        assert {host.partition(":")[0] for host in visited.hosts} <= {"127.0.0.1", ""}


@pytest.fixture(scope="session")
def endless(tiny_llava: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundled base that cannot end an answer, so that there is time to watch and to stop it."""
    folder = tmp_path_factory.mktemp("models") / "endless"
    shutil.copytree(tiny_llava, folder)
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"suppress_tokens": [config["eos_token_id"]]}))
    return folder


@pytest.fixture
def free_port() -> int:
    return _free_port()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """Run `mmdora demo` in a process of its own; gives its address."""
    command = [sys.executable, "-m", "mmdora", "demo", *arguments, "--port", str(_free_port())]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout is not None
        line = next((line for line in run.stdout if line.startswith("mmdora:")), "")
        assert line, "the page did not start"
        yield line.partition(" at ")[2].split()[0]
    finally:
        run.terminate()
        code = run.wait(timeout=60)
    assert code == 0


@pytest.fixture(scope="session")
def url(endless: Path) -> Iterator[str]:
    """The address of a page with three columns."""
    with serving(*(f"{name}={endless}" for name in NAMES)) as address:
        yield address
