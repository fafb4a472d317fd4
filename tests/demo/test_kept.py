"""Conversations that are kept: what comes back, to whom, and for how long."""

import json
import time
from dataclasses import replace
from typing import Any

import gradio as gr
import pytest
from demo_page import png, serving

from mmdora.demo import kept as module
from mmdora.demo.kept import FILE, Kept, Saved
from mmdora.demo.session import Session
from mmdora.demo.sharing import KEPT, Sharing
from mmdora.demo.turns import Answer, AnswerSettings, Turn
from mmdora.errors import MmdoraError
from mmdora.files import sha256
from mmdora.predict.answers import Token

ANSWERS = (
    Answer("base", "done", "red \ud83d", 1, 0.1, first_tokens=(Token("red", 0.75, (("red", 0.75), ("blue", 0.2))),)),
    Answer("dora", "done", "<b>blue</b>", 2, 0.1),
)
TURN = Turn("what?", AnswerSettings(seed=3, strength=0.5), ANSWERS, (1, 0), True, "dora")


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "own.png").write_bytes(png(7))
    return tmp_path / "own.png"


@pytest.fixture
def saved(picture):
    return Saved((TURN,), (picture,), AnswerSettings(max_tokens=9), True)


@pytest.fixture
def kept(tmp_path):
    return Kept(tmp_path / "kept", ["base", "dora"])


def test_what_is_kept_comes_back(kept, saved):
    name = kept.new_name()
    kept.save(name, saved, "anna")
    again = kept.load(name)
    assert again.turns == saved.turns and (again.settings, again.blind) == (saved.settings, True)
    assert [path.read_bytes() for path in again.pictures] == [png(7)]
    kept.save(name, replace(saved, turns=()), "anna")
    assert kept.load(name).turns == (), "the later one stands"
    assert "anna" not in (kept.folder / name / FILE).read_text()


@pytest.mark.parametrize(
    "name",
    ["", "..", "../kept", "/etc/passwd", "x" * 22 + "/..", "A" * 21, "A" * 23, "%2e%2e%2f" + "A" * 13,
     "AAAAAAAAAAAAAAAAAAAA\n\n", "AAAAAAAAAAAAAAAAAAAAA\x00", None, 7, "é" * 22],
)  # fmt: skip
def test_no_name_leads_elsewhere(kept, saved, name):
    for act in (kept.load, lambda own: kept.save(own, saved, "anna")):
        with pytest.raises(MmdoraError, match="no such conversation"):
            act(name)
    assert not kept.owned(name, "anna")
    assert list(kept.folder.iterdir()) == []


def test_it_expires_and_the_caps_hold(kept, saved, monkeypatch):
    names = [kept.new_name() for _ in range(4)]
    kept.save(names[0], saved, "anna", days=0)
    time.sleep(0.01)
    with pytest.raises(MmdoraError, match="expired"):
        kept.load(names[0])
    monkeypatch.setattr(module, "COUNT", 2)
    for name in names:
        kept.save(name, saved, "anna")
    assert sorted(place.name for place in kept.folder.iterdir()) == sorted(names[2:]), "the oldest go first"
    again = Kept(kept.folder, ["base", "dora"])
    assert [own.name for own in again.of("anna")] == names[:1:-1], "a page that starts finds them"
    monkeypatch.setattr(module, "BYTES", 10)
    kept.save(names[0], saved, "anna")
    assert list(kept.folder.iterdir()) == []


def test_other_models_and_damage_are_told(kept, saved, tmp_path):
    name = kept.new_name()
    kept.save(name, saved, "anna")
    with pytest.raises(MmdoraError, match="one of base, dora"):
        Kept(tmp_path / "kept", ["other"]).load(name)
    for content in ("{", "[]", json.dumps({"until": 1e12})):
        (kept.folder / name / FILE).write_text(content)
        with pytest.raises(MmdoraError, match="cannot be read"):
            kept.load(name)
    assert Kept(kept.folder, ["base", "dora"]).of("anna") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(MmdoraError, match=r"--sessions .*cannot be written"):
        Kept(tmp_path / "file", ["base"])
    with pytest.raises(MmdoraError, match="no longer on the server"):
        kept.save(name, replace(saved, pictures=(tmp_path / "gone.png",)), "anna")
    assert not list(kept.folder.glob("*.partial")) and (kept.folder / name).is_dir(), "what was kept stays"


def test_the_list_is_the_visitors_own(kept, saved):
    for owner in ("anna", "bert"):
        kept.save(kept.new_name(), saved, owner)
    kept.save(kept.new_name(), replace(saved, turns=()), "anna")
    (own,) = kept.of("anna")
    assert own.title == "what?" and kept.owned(own.name, "anna") and not kept.owned(own.name, "bert")


@pytest.fixture
def page(kept, picture, monkeypatch, tmp_path):
    """What a browser tab does, without a page."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    tabs: dict[str, Session] = {}
    sharing = Sharing(
        {"base": "", "dora": ""}, [(picture, "what is it?")], kept, listed=True,
        session_of=lambda request: tabs.setdefault(str(request.session_hash), Session()),
    )  # fmt: skip
    return sharing, tabs


def visit(tab, **query):
    request: Any = gr.Request(session_hash=tab)
    request.query_params = query
    return request


GIVEN = (9, 0, 1, 0, "", 1.0, True)


def test_a_reload_shows_what_was_there(page, picture):
    sharing, tabs = page
    tabs["a"] = Session(turns=[TURN], pictures=(picture,), digests=(sha256(picture),))
    name, listed = sharing.save(visit("a"), "secret", None, None, *GIVEN)
    assert f"?c={name}" in listed
    (first, second, _, tokens, *_, strength, blind), problem, _ = sharing.opened(visit("b"), "secret", name)
    assert (problem, second, tokens, strength, blind) == ("", None, 9, 1.0, True)
    with open(first, "rb") as file:
        assert file.read() == png(7)
    assert tabs["b"].turns == [TURN] and tabs["b"].digests == tabs["a"].digests and tabs["b"].name == name


def test_a_link_is_a_copy_that_nobody_changes(page, picture):
    sharing, tabs = page
    tabs["a"] = Session(turns=[TURN], pictures=(picture,), digests=(sha256(picture),))
    name = sharing.link(visit("a"), "", *GIVEN).removeprefix("?c=")
    tabs["a"].turns.append(TURN)
    values, problem, _ = sharing.opened(visit("b", c=name), "other", "")
    assert not problem and values[0] and tabs["b"].turns == [TURN] and tabs["b"].name == ""
    values, _, _ = sharing.opened(visit("c"), "other", name)  # as if it were the visitor's own
    assert values[0] == gr.skip() and "c" not in tabs
    changed, _ = sharing.save(visit("c"), "other", None, None, *GIVEN)
    assert changed != name and sharing.kept.load(name).turns == (TURN,)
    _, problem, _ = sharing.opened(visit("d", c="../../etc/passwd"), "other", "")
    assert problem.startswith("There is no such conversation")
    own, _ = sharing.save(visit("b", c=name), "other", None, None, *GIVEN)
    tabs["b"].turns.append(TURN)
    sharing.save(visit("b", c=name), "other", None, None, *GIVEN)
    sharing.opened(visit("f", c=name), "other", own)  # a reload of the tab that went on from the link
    assert len(tabs["f"].turns) == 2 and tabs["f"].name == own
    assert sharing.link(visit("e"), "why?", *GIVEN).startswith("?q=why")


def test_what_cannot_be_kept_is_no_error(page):
    sharing, _ = page
    outside = {"path": "/etc/passwd"}
    assert sharing.save(visit("a"), "secret", outside, None, *GIVEN)[0] == ""
    assert sharing.save(visit("a"), None, None, None, "many", *GIVEN[1:])[0] == ""
    assert list(sharing.kept.folder.iterdir()) == []
    assert "localStorage" in KEPT


def test_no_route_serves_what_is_kept():
    with serving() as page:
        folder = page.page.sharing.kept.folder
        name = Kept.new_name()
        page.page.sharing.kept.save(name, Saved((TURN,), (), AnswerSettings(), False), "anna")
        for path in (f"gradio_api/file={folder}/{name}/{FILE}", f"file={folder}/{name}/{FILE}", f"{name}/{FILE}"):
            assert page.get(path).status_code in (403, 404), path
