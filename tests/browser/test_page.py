"""What a visitor does, in a real browser. `MMDORA_SCREENSHOT=path.png` keeps a picture of the answered page."""

import os

import pytest
from playwright.sync_api import expect

from mmdora.demo import app, compare
from mmdora.demo.compare import Column, examples
from mmdora.predict import Partial

PICTURE, QUESTION = examples(4)[3]


def test_ask_and_watch_every_column_answer(visit, url):
    tab = visit(url)
    _settings(tab, "Max tokens", "60")
    # the page notes every state of the first column itself: asking from outside could miss them all
    tab.page.evaluate(
        """() => { window.seen = [];
        new MutationObserver(() => {
            const text = document.querySelector('.answer .text')?.innerText ?? '';
            if (text !== window.seen.at(-1)) window.seen.push(text);
        }).observe(document.body, {subtree: true, childList: true, characterData: true}); }"""
    )
    tab.ask(PICTURE, QUESTION)
    expect(tab.page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
    expect(tab.cards("done")).to_have_count(3)
    texts = tab.texts()
    grown = [text for text in tab.page.evaluate("window.seen") if text and texts[0].startswith(text)]
    assert len(grown) > 2 and grown == sorted(grown, key=len), "the answer came at once"
    assert texts[0] == texts[1] == texts[2]
    for figures in tab.page.locator(".answer dl").all_inner_texts():
        _, first, _, rate, _, tokens = figures.split("\n")
        assert first.endswith(("ms", " s")) and int(rate) > 0 and tokens == "60"
    assert tab.page.locator(".answer h2").all_inner_texts() == ["base", "lora", "dora"]
    expect(tab.page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
    if path := os.environ.get("MMDORA_SCREENSHOT"):
        tab.page.screenshot(path=path, full_page=True)


def test_columns_are_equal_and_side_by_side(visit, url):
    boxes = [card.bounding_box() for card in visit(url).page.locator(".answer").all()]
    assert len({box["y"] for box in boxes}) == len({round(box["width"]) for box in boxes}) == 1


def test_stop_ends_every_column_and_the_next_question_works(visit, url):
    tab = visit(url)
    _settings(tab, "Max tokens", "1000")
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("running")).to_have_count(1)
    tab.page.get_by_role("button", name="Stop", exact=True).click()
    expect(tab.cards("stopped")).to_have_count(3, timeout=10_000)
    _settings(tab, "Max tokens", "5")
    tab.page.get_by_role("button", name="Ask", exact=True).click()
    expect(tab.cards("done")).to_have_count(3)


def test_clear_during_an_answer(visit, url):
    tab = visit(url)
    _settings(tab, "Max tokens", "1000")
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("running")).to_have_count(1)
    tab.page.get_by_role("button", name="Clear", exact=True).click()
    expect(tab.cards("idle")).to_have_count(3)
    expect(tab.page.get_by_label("Question", exact=True)).to_have_value("")
    expect(tab.page.locator(".picture img")).to_have_count(0)
    tab.page.wait_for_timeout(1_000)
    expect(tab.cards("idle")).to_have_count(3)
    _settings(tab, "Max tokens", "3")
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("done")).to_have_count(3)


def test_a_question_without_a_picture_is_told(visit, url):
    tab = visit(url)
    tab.ask(None, QUESTION)
    tab.page.get_by_text("Choose a picture first.").wait_for()
    expect(tab.cards("idle")).to_have_count(3)
    expect(tab.page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def test_a_file_that_is_no_picture_is_told(visit, url, tmp_path):
    tab = visit(url)
    (tmp_path / "x.png").write_text("no picture")
    tab.page.locator("input[type=file]").first.set_input_files(tmp_path / "x.png")
    tab.page.locator(".picture img").wait_for(state="attached")
    tab.ask(None, QUESTION)
    tab.page.get_by_text("not an image of a known format").wait_for()


def test_an_example_fills_picture_and_question(visit, url):
    tab = visit(url)
    tab.page.get_by_text(QUESTION).first.click()
    expect(tab.page.get_by_label("Question", exact=True)).to_have_value(QUESTION)
    tab.page.locator(".picture img").wait_for()
    _settings(tab, "Max tokens", "5")
    tab.page.get_by_role("button", name="Ask", exact=True).click()
    expect(tab.cards("done")).to_have_count(3)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_does_not_scroll_sideways(visit, url, dark):
    tab = visit(url, width=390, height=844, dark=dark)
    _settings(tab, "Max tokens", "20")
    tab.ask(PICTURE, "long " * 100)
    expect(tab.cards("done")).to_have_count(3)
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 390
    boxes = [card.bounding_box() for card in tab.page.locator(".answer").all()]
    assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"] and len({box["x"] for box in boxes}) == 1


def test_markup_in_an_answer_stays_text(visit, monkeypatch, free_port):
    nasty = '<img src=x onerror="document.title=1"><script>document.title=2</script>${document.title=3}{{title}}'
    monkeypatch.setattr(compare, "stream", lambda *_, **__: iter([Partial(nasty, 1, 0.1, None)]))
    page = app.build([Column("<b>one</b>", None, None, "<i>kind</i>")], [])
    app._launch(page, "127.0.0.1", free_port)
    try:
        tab = visit(page.local_url)
        tab.ask(PICTURE, QUESTION)
        expect(tab.cards("done")).to_have_count(1)
        assert tab.texts() == [nasty]
        assert tab.page.locator(".answer h2").inner_text() == "<b>one</b>"
        assert tab.page.title() == "mmdora"
    finally:
        page.close(verbose=False)


def _settings(tab, label: str, value: str) -> None:
    box = tab.page.get_by_label(f"number input for {label}")
    if not box.is_visible():
        tab.page.locator("button.label-wrap", has_text="Settings").click()
    box.fill(value)
    box.press("Tab")
