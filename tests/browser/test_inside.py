"""The tab "Look inside" of three models: a tab for each pair."""

import json

import pytest
from browser.test_access import serious
from evaluation_files import evaluation, graded
from playwright.sync_api import expect

from mmdora.data_prep.easy_vqa import test_rows as easy_vqa_rows
from mmdora.demo import app, server
from mmdora.demo.access import Access
from mmdora.demo.hosts import Allowed
from mmdora.demo.inside import Inside
from mmdora.demo.question_sets import QuestionSet
from mmdora.demo.turns import ModelColumn
from mmdora.demo.votes import Votes
from mmdora.evaluate.scoring.metrics import question_text
from mmdora.evaluate.tasks import task_of
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


def test_a_question_on_which_two_differ_opens_in_compare(visit, tmp_path, free_port):
    rows = easy_vqa_rows()[:7]
    for name, marks in zip(NAMES, ("----+++", "++++---", "+++++--"), strict=True):
        folder = tmp_path / "eval" / "easy-vqa" / name
        answered = zip(evaluation(folder, "easy-vqa", graded(marks)), rows, strict=True)
        own = [line | {"id": row["id"], "question": question_text(row)} for line, row in answered]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
    columns = [ModelColumn(name, "kind", "cpu", lambda *_: iter([Partial("yes", 1, 0.1, None)])) for name in NAMES]
    sets = [QuestionSet("easy-VQA", task_of("easy-vqa"), rows)]
    with server.upload_folder():
        inside = Inside(dict.fromkeys(NAMES, "tiny-llava"), tmp_path)
        page = app.Page(columns, [], Votes(NAMES), inside, sets=sets)
        server.launch(page, Access(port=free_port), Allowed(), None)
        tab = visit(page.blocks.local_url)
        tab.page.get_by_role("tab", name="Look inside").click()
        tab.page.get_by_role("tab", name="lora and dora").click()
        line = tab.page.locator(".inside tr[data-row]:visible")
        expect(line.locator("img")).to_have_count(1)
        line.get_by_role("button").click()
        expect(tab.page.locator(".picture img").first).to_be_visible()
        expect(tab.page.get_by_label("Question", exact=True)).to_have_value(question_text(rows[4]))
        page.blocks.close(verbose=False)


def test_a_pair_on_a_phone(visit, address):
    tab = visit(address, width=390, height=844)
    tab.page.get_by_role("tab", name="Look inside").click()
    tab.page.get_by_role("tab", name="base and lora").click()
    expect(tab.page.get_by_role("heading", name="Where they differ: shapes")).to_be_visible()
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 390
    tab.page.get_by_label("What went wrong").locator("visible=true").click()
    tab.page.get_by_role("option", name="lora").click()
    expect(tab.page.frame_locator("iframe.gallery").get_by_role("heading")).to_have_text("lora was wrong")
