import json
from urllib.parse import parse_qsl

import pytest

from mmdora.demo.results import as_json, as_markdown, from_link, link
from mmdora.demo.turns import Answer, AnswerSettings, Turn
from mmdora.errors import MmdoraError

KINDS = {"base": "base, 2 M parameters", "dora": "DoRA, merged"}
ANSWERS = (
    Answer("base", "done", "<b>red</b>\n# x", 4, 0.25, 20.0),
    Answer("dora", "failed", "", error="out of *memory*"),
)


@pytest.mark.parametrize(
    ("question", "settings", "example", "blind"),
    [
        ("what?", AnswerSettings(), None, False),
        ("& = ? #é", AnswerSettings(7, 0.5, 0.9, 12, "be brief"), 3, True),
    ],
)
def test_a_link_gives_back_what_was_set(question, settings, example, blind):
    query = dict(parse_qsl(link(question, settings, example, blind=blind).removeprefix("?"), strict_parsing=True))
    assert from_link(query, 6) == (question, settings, example, blind)


@pytest.mark.parametrize(
    "query",
    [{"n": "x"}, {"n": "1e9"}, {"n": "100000"}, {"t": "nan"}, {"t": "-1"}, {"p": "0"}, {"s": "-1"}, {"example": "0"},
     {"example": "7"}, {"example": "../../etc/passwd"}, {"example": "9" * 5000}, {"example": "0000000019"},
     {"example": "²"}],
)  # fmt: skip
def test_a_link_sets_nothing_that_the_page_would_not(query):
    with pytest.raises(MmdoraError):
        from_link(query, 6)


def test_json_has_everything():
    turn = Turn("what?", AnswerSettings(seed=2), ANSWERS, (0, 1))
    written = json.loads(as_json([turn], KINDS, {"sha256": "f00"}))
    assert written["picture"] == {"sha256": "f00"} and written["models"] == KINDS
    assert written["turns"][0]["settings"]["seed"] == 2
    assert written["turns"][0]["answers"] == json.loads(json.dumps([answer.to_dict() for answer in ANSWERS]))


def test_markdown_holds_text_as_text():
    text = as_markdown([Turn("a\n# b", AnswerSettings(), ANSWERS, (0, 1))], KINDS, {"sha256": "f00"})
    assert "    <b>red</b>\n    # x\n" in text and "    a\n    # b\n" in text
    assert "Failed: out of \\*memory\\*" in text and "First token 250 ms, 20.0 tokens/s, 4 tokens" in text


@pytest.mark.parametrize("form", [as_json, as_markdown])
def test_what_is_hidden_stays_hidden_until_the_vote(form):
    hidden = Turn("what?", AnswerSettings(), ANSWERS, (1, 0), blind=True)
    text = form([hidden], KINDS, {}).replace("mmdora", "")
    assert "Model A" in text and not any(word in text for word in ("base", "dora", "DoRA", "0.25", "250", "memory"))
    assert "dora" in form([Turn("what?", AnswerSettings(), ANSWERS, (1, 0), True, "tie")], KINDS, {})
