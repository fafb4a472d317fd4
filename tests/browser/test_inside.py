"""The tab "Look inside" of three models: a tab for each pair."""

import pytest
from browser.test_access import serious
from evaluation_files import evaluation, graded
from playwright.sync_api import expect

from mmdora.demo import app, server
from mmdora.demo.access import Access
from mmdora.demo.hosts import Allowed
from mmdora.demo.inside import Inside
from mmdora.demo.turns import ModelColumn
from mmdora.demo.votes import Votes
from mmdora.predict.answers import Partial

NAMES = ("base", "lora", "dora")


@pytest.fixture
def address(tmp_path, free_port):
    for name, marks in zip(NAMES, ("----+++", "++++---", "+++++--"), strict=True):
        evaluation(tmp_path / "eval" / "shapes" / name, "shapes", graded(marks))
        (tmp_path / "eval" / "shapes" / name / "errors.html").write_text(f"<h1>{name} was wrong</h1>")
    columns = [ModelColumn(name, "kind", "cpu", lambda *_: iter([Partial("yes", 1, 0.1, None)])) for name in NAMES]
    with server.upload_folder():
        page = app.Page(columns, [], Votes(NAMES), Inside(dict.fromkeys(NAMES, "tiny-llava"), tmp_path))
        server.launch(page, Access(port=free_port), Allowed(), None)
        yield page.blocks.local_url
        page.blocks.close(verbose=False)


def test_a_pair_shows_where_its_two_differ(visit, address):
    tab = visit(address)
    tab.page.get_by_role("tab", name="Look inside").click()
    expect(tab.page.locator(".inside td:visible").filter(has_text="base")).to_have_count(1)
    for pair, alone in (("lora and dora", ["0", "1"]), ("base and lora", ["4", "3"])):
        tab.page.get_by_role("tab", name=pair).click()
        first, second = pair.split(" and ")
        expect(tab.page.get_by_role("cell", name=f"{first} right").locator("visible=true")).to_have_count(1)
        shown = tab.page.locator(".inside:visible", has_text="Where they differ: shapes")
        cells = shown.locator("table").first.locator("td").all_inner_texts()
        assert [cells[2], cells[4]] == alone[:: 1 if pair.startswith("lora") else -1], cells
        assert tab.page.locator(".inside h3:visible").all_inner_texts()[:2] == [first, second]
        assert serious(tab) == []


def test_a_pair_on_a_phone(visit, address):
    tab = visit(address, width=390, height=844)
    tab.page.get_by_role("tab", name="Look inside").click()
    tab.page.get_by_role("tab", name="base and lora").click()
    expect(tab.page.get_by_role("heading", name="Where they differ: shapes")).to_be_visible()
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 390
    tab.page.get_by_label("What went wrong").locator("visible=true").click()
    tab.page.get_by_role("option", name="lora").click()
    expect(tab.page.frame_locator("iframe.gallery").get_by_role("heading")).to_have_text("lora was wrong")
