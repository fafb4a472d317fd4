"""axe-core finds nothing serious, on any state of the page, Gradio's own widgets included."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.test_page import PICTURE, QUESTION, settings
from playwright.sync_api import expect


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothingserious(visit, url, dark):
    tab = visit(url, dark=dark)
    tab.page.get_by_label("Blind: hide the names until I vote").check()
    settings(tab, "Max tokens", "4")
    tab.page.locator("button.label-wrap", has_text="Second picture").click()
    tab.ask(PICTURE, QUESTION)
    tab.page.get_by_role("button", name="B is best", exact=True).click()
    tab.page.locator(".tally").wait_for()
    assert serious(tab) == []
    tab.page.get_by_role("tab", name="Look inside").click()
    expect(tab.page.locator(".inside h2").first).to_be_visible()
    assert serious(tab) == []


def test_axe_sees_what_is_wrong(visit, url):
    tab = visit(url)
    tab.page.evaluate("document.querySelector('.title p').style.color = '#ddd'")
    assert [rule for rule, _ in serious(tab)] == ["color-contrast"]


def serious(tab):
    # a colour on its way to another is neither
    tab.page.evaluate("Promise.all(document.getAnimations().map((moving) => moving.finished))")
    violations = Axe().run(tab.page).response["violations"]
    return [
        (rule["id"], [node["html"][:200] for node in rule["nodes"]])
        for rule in violations
        if rule["impact"] in ("serious", "critical")
    ]
