"""Writes docs/images: the page's main states with real models, in a headless Chromium.

    python tests/browser/screenshots.py --results runs/quickstart base=tiny-llava \
        LoRA=runs/quickstart/export/lora DoRA=runs/quickstart/export/dora
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chromium import executable
from playwright.sync_api import sync_playwright

from mmdora.data_prep.easy_vqa import samples
from mmdora.demo import server
from mmdora.demo.access import Access
from mmdora.demo.app import Page
from mmdora.demo.hosts import Allowed
from mmdora.demo.inside import Inside
from mmdora.demo.turns import ModelColumn
from mmdora.demo.votes import Votes
from mmdora.predict.answers import Partial

IMAGES = Path(__file__).parents[2] / "docs" / "images"
GERMAN = (
    "Auf dem Bild ist ein blauer Kreis vor einem hellen Hintergrund zu sehen. Er liegt etwas links von der Mitte, und "
    "sein Rand ist scharf gezeichnet.\n\nWeitere Formen gibt es nicht; von einer Verkehrsinfrastrukturfinanzierungs"
    "gesellschaft, nach der gefragt wurde, ist nichts zu erkennen. " * 2
)
ARABIC = (
    "تظهر في الصورة دائرة زرقاء على خلفية فاتحة، وهي تقع قليلا إلى يسار الوسط، وحافتها واضحة (64 × 64 pixel).\n\n"
    "لا توجد أشكال أخرى في الصورة، ولا يمكن معرفة المزيد عنها. " * 2
)
"""Long answers, as no bundled model gives them: they show how a page of another language looks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--results")
    parser.add_argument("--out", type=Path, default=IMAGES)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    chromium = executable()
    command = [sys.executable, "-m", "mmdora", "demo", *given.models, "--port", str(_free_port())]
    command += ["--results", given.results] if given.results else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = next(line for line in server.stdout if line.startswith("mmdora:")).partition(" at ")[2].split()[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            _compared(browser, url, given.out / "page.png")
            _blind(browser, url, given.out / "blind.png")
            _phone(browser, url, given.out / "phone.png")
            _languages(browser, given.out / "languages.png", given.out / "languages-phone.png")
            if given.results:
                _inside(browser, url, given.out / "pair.png", given.out / "moved.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()


def _compared(browser: Any, url: str, path: Path) -> None:
    page = _page(browser, url)
    _example(page, 3)
    _ask(page, "what is in the picture?")
    _ask(page, "what is the color of the circle?")
    page.screenshot(path=path, full_page=True)


def _blind(browser: Any, url: str, path: Path) -> None:
    page = _page(browser, url, dark=True)
    _example(page, 4)
    page.get_by_label("Blind: hide the names until I vote").check()
    for question in ("what shape is it?", "what is in the picture?"):
        _ask(page, question)
        if page.locator(".tally").count() == 0:
            page.get_by_role("button", name="B is best", exact=True).click()
            page.locator(".tally").wait_for()
    page.screenshot(path=path, full_page=True)


def _phone(browser: Any, url: str, path: Path) -> None:
    page = _page(browser, url, width=390, height=844)
    _example(page, 0)
    _ask(page, "what is the red shape?")
    page.screenshot(path=path, full_page=True)


def _languages(browser: Any, laptop: Path, phone: Path) -> None:
    """Take pictures of a long German and a long Arabic answer: dark on a laptop, light on a phone."""

    def speaker(text: str) -> Any:
        def speak(*_: Any) -> Iterator[Partial]:
            yield Partial(text, 60, 1.5, None)

        return speak

    names = {"deutsch": GERMAN, "arabic": ARABIC}
    columns = [ModelColumn(name, "a model", "here", speaker(text)) for name, text in names.items()]
    with server.upload_folder():
        served = Page(columns, samples(6), Votes(list(names)), Inside({}))
        server.launch(served, Access(port=_free_port()), Allowed(), None)
        on_a_laptop, on_a_phone = {"width": 1280, "height": 800, "dark": True}, {"width": 390, "height": 844}
        for path, size in ((laptop, on_a_laptop), (phone, on_a_phone)):
            page = _page(browser, str(served.blocks.local_url), **size)
            _example(page, 0)
            _ask(page, "Was ist auf dem Bild zu sehen? ماذا يوجد في الصورة؟")
            page.screenshot(path=path)
        served.blocks.close(verbose=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _inside(browser: Any, url: str, pair: Path, moved: Path) -> None:
    """Take pictures of the last pair of models, and of what their adapters changed."""
    page = _page(browser, url)
    page.get_by_role("tab", name="Look inside").click()
    page.locator(".inside:visible").first.wait_for()
    if pairs := page.get_by_role("tab").filter(has_text=" and ").all():
        pairs[-1].click()
        page.get_by_role("heading", name="Where they differ").first.wait_for()
    page.wait_for_timeout(1_000)
    page.screenshot(path=pair, full_page=True)
    button = page.get_by_role("button", name="Show how far the adapters moved each layer").locator("visible=true")
    if button.count():
        button.click()
        page.locator(".inside img[alt^='Change of magnitude over']:visible").wait_for()
        page.wait_for_timeout(1_000)
        page.locator(".inside", has=page.locator("img[alt^='Mean change']:visible")).screenshot(path=moved)


def _page(browser: Any, url: str, *, width: int = 1280, height: int = 800, dark: bool = False) -> Any:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    page.set_default_timeout(120_000)
    page.goto(url)
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    page.wait_for_timeout(1_000)  # While Gradio is still mounting, typed text would be lost.
    return page


def _example(page: Any, number: int) -> None:
    page.locator(".examples button").nth(number).click()
    page.locator(".picture img").wait_for()


def _ask(page: Any, question: str) -> None:
    before = page.locator(".turn").count()
    box = page.get_by_label("Question", exact=True)
    box.fill(question)
    box.press("Enter")
    page.locator(".turn").nth(before).wait_for()
    page.get_by_role("button", name="Retry", exact=True).and_(page.locator(":enabled")).wait_for()
    page.wait_for_timeout(500)


if __name__ == "__main__":
    main()
