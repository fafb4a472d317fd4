"""VL-BART on the page: a question about two pictures, adapters switched on one base."""

import pytest
from browser.conftest import serving
from browser.test_page import settings
from playwright.sync_api import expect
from shrunken_vlbart import picture
from vlbart_folders import greedy, save

QUESTION = "nlvr: both are red"


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    return save(tmp_path_factory.mktemp("vlbart"))


def test_two_pictures_in_one_question(visit, specs, tmp_path):
    pictures = [picture(1), picture(2)]
    for number, image in enumerate(pictures):
        image.save(tmp_path / f"{number}.png")
    with serving(*(f"{name}={path}" for name, path in specs.items()), "--shared-base") as url:
        tab = visit(url)
        settings(tab, "Max tokens", "12")
        tab.page.locator("button.label-wrap", has_text="Second picture").click()
        tab.page.locator("input[type=file]").nth(1).set_input_files(tmp_path / "1.png")
        tab.page.locator(".picture img").wait_for()
        tab.page.locator("input[type=file]").first.set_input_files(tmp_path / "0.png")
        expect(tab.page.locator(".picture img")).to_have_count(2)
        tab.ask(None, QUESTION)
        expect(tab.cards("done")).to_have_count(3)
        expected = [greedy(path, QUESTION, pictures, 12) for path in specs.values()]
        assert tab.texts() == [text or "(an empty answer)" for text in expected]
        assert tab.page.locator(".answer mark").count() >= 2
        tab.page.get_by_role("button", name="Retry", exact=True).click()  # with both pictures again
        expect(tab.cards("done")).to_have_count(3)
        tab.page.get_by_role("tab", name="Look inside").click()
        tab.page.get_by_role("button", name="Show how far the adapters moved each layer").click()
        expect(tab.page.locator(".inside img")).to_have_count(3)
