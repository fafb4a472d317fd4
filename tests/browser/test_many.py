"""The tab "Many questions", and long answers in other scripts, on a page whose models are functions."""

import time
import zipfile

import pytest
from browser.test_access import serious
from browser.test_page import PICTURE, settings
from demo_page import free_port
from playwright.sync_api import expect

from mmdora.data_prep.easy_vqa import test_rows as easy_vqa_rows
from mmdora.demo import app, server
from mmdora.demo.access import Access
from mmdora.demo.hosts import Allowed
from mmdora.demo.inside import Inside
from mmdora.demo.question_sets import QuestionSet
from mmdora.demo.turns import ModelColumn
from mmdora.demo.votes import Votes
from mmdora.evaluate.tasks import task_of
from mmdora.predict.answers import Partial, Token

GERMAN = "Auf dem Bild ist ein Donaudampfschifffahrtsgesellschaftskapitän zu sehen, der winkt. " * 12
ARABIC = "في الصورة مثلث أحمر صغير على خلفية زرقاء فاتحة. " * 12


def speaking(text):
    """A model whose answer grows for half a second."""
    tokens = tuple(Token(word, 0.6, ((word, 0.6), ("und", 0.3))) for word in text.split()[:8])

    def speak(prompt, settings, stop):
        for part in range(1, 11):
            time.sleep(0.05)
            yield Partial(text[: len(text) * part // 10], 4 * part, 0.1, 20.0, tokens)

    return speak


def right(task, rows, stop):
    return [row["messages"][-1]["content"][0]["text"] for row in rows]


def often_wrong(task, rows, stop):
    return [text if text in ("yes", "no") else "purple" for text in right(task, rows, stop)]


@pytest.fixture(scope="module")
def address():
    columns = [
        ModelColumn("base", "a model", "cpu", speaking(GERMAN), reply=often_wrong),
        ModelColumn("DoRA", "a model", "cpu", speaking(ARABIC), reply=right, scales=True),
    ]
    sets = [QuestionSet("easy-VQA: test", task_of("easy-vqa"), easy_vqa_rows())]
    with server.upload_folder():
        names = [column.name for column in columns]
        page = app.Page(
            columns, [(PICTURE, "what?")], Votes(names), Inside(dict.fromkeys(names, "tiny-llava")), sets=sets
        )
        server.launch(page, Access(port=free_port()), Allowed(), None)
        yield page.blocks.local_url
        page.blocks.close(verbose=False)


def asked(tab):
    tab.page.get_by_role("tab", name="Many questions").click()
    tab.page.get_by_role("button", name="Ask all", exact=True).click()
    expect(tab.page.locator(".many tbody tr")).to_have_count(50)


def test_a_set_is_asked_filtered_taken_along_and_opened(visit, address):
    tab = visit(address, height=800)
    asked(tab)
    expect(tab.page.get_by_text("50 of 50 questions answered")).to_be_visible()
    expect(tab.page.get_by_text("DoRA is better")).to_be_visible()
    wrong = tab.page.locator(".many tbody tr:has(.wrong)").count()
    assert 0 < wrong < 50
    tab.page.get_by_label("Show", exact=True).click()
    tab.page.get_by_role("option", name="DoRA right, base wrong").click()
    expect(tab.page.locator(".many tbody tr:visible")).to_have_count(wrong)
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Download CSV").click()
    assert len(download.value.path().read_text().splitlines()) == 51
    assert serious(tab) == []
    line = tab.page.locator(".many tbody tr:visible").first
    question = line.locator("td").nth(2).inner_text()
    line.locator("td").nth(2).click()
    expect(tab.page.get_by_label("Question", exact=True)).to_have_value(question)
    tab.page.locator(".picture img").first.wait_for()


def test_own_questions_in_a_zip_and_a_bad_one_at_once(visit, address, tmp_path):
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        archive.writestr("t.csv", "image,question,answer\na.png,what is it?,red\nb.png,and this?,blue\n")
        archive.write(PICTURE, "a.png")
    tab = visit(address, width=390, height=844)
    tab.page.get_by_role("tab", name="Many questions").click()
    chooser = tab.page.locator(".set-file input[type=file]")
    chooser.set_input_files(tmp_path / "own.zip")
    tab.page.get_by_text("is not in the ZIP").wait_for()
    with zipfile.ZipFile(tmp_path / "own.zip", "a") as archive:
        archive.write(PICTURE, "b.png")
    chooser.set_input_files(tmp_path / "own.zip")
    expect(tab.page.get_by_label("your own questions")).to_be_checked()
    tab.page.get_by_role("button", name="Ask all", exact=True).click()
    expect(tab.page.locator(".many tbody tr")).to_have_count(2)
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_long_answers_in_german_and_arabic(visit, address, dark):
    tab = visit(address, height=800, dark=dark)
    tab.page.locator(".examples button").first.focus()  # a tile can be reached and chosen by keyboard
    tab.page.keyboard.press("Enter")
    tab.page.locator(".picture img").first.wait_for()
    tab.page.get_by_role("button", name="Ask", exact=True).click()
    expect(tab.cards("done")).to_have_count(2)
    expect(tab.page.get_by_text("They part at token 1")).to_be_visible()
    assert tab.page.locator(".answer .text").nth(1).evaluate("(text) => getComputedStyle(text).direction") == "rtl"
    tab.page.locator("button.label-wrap", has_text="Settings").click()
    expect(tab.page.get_by_label("number input for How much adapter?", exact=False)).to_be_visible()
    assert serious(tab) == []


def test_a_link_carries_the_conversation_and_a_reload_keeps_it(visit, address):
    tab = visit(address)
    settings(tab, "Max tokens", "6")
    tab.ask(PICTURE, "what is it?")
    expect(tab.cards("done")).to_have_count(2)
    tab.page.on("dialog", lambda dialog: dialog.dismiss())  # A page without HTTPS may have no clipboard.
    tab.page.get_by_role("button", name="Copy link").click()
    tab.page.wait_for_url("**/?c=*")
    again = visit(tab.page.url)
    expect(again.page.locator(".asked")).to_have_text(["what is it?"])
    again.page.locator(".picture img").first.wait_for()
    again.ask(None, "and where?")
    expect(again.cards("done")).to_have_count(4)
    again.page.wait_for_timeout(1_000)  # It is kept after the answer.
    again.page.reload()
    expect(again.page.locator(".asked")).to_have_text(["and where?", "what is it?"])
    again.page.locator(".picture img").first.wait_for()
    again.page.locator("button.label-wrap", has_text="Settings").click()
    expect(again.page.get_by_label("number input for Max tokens")).to_have_value("6")
    assert visit(tab.page.url).page.locator(".asked").count() <= 1, "the link stays what it was"


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)], ids=["laptop", "phone"])
def test_the_answer_is_on_the_first_screen(visit, address, width, height):
    tab = visit(address, width=width, height=height)
    settings(tab, "Max tokens", "6")
    tab.ask(PICTURE, "what is it?")
    expect(tab.cards("done")).to_have_count(2)
    tab.page.wait_for_timeout(1_500)  # A phone scrolls there smoothly.
    text = tab.page.locator(".turn .answer .text").first
    box = text.bounding_box()
    assert box is not None and 0 <= box["y"] < height - 60, box
    assert text.evaluate("(text) => text.scrollTop") > 0, "it did not scroll with the text"
    expect(tab.page.get_by_label("number input for Max tokens")).to_be_hidden()
    expect(tab.page.locator(".examples button")).to_be_hidden()
