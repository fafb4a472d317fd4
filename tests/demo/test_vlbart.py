"""VL-BART on the page is a model like any other; it alone was trained on questions about two pictures."""

from itertools import combinations

import pytest
from shrunken_vlbart import picture
from vlbart_folders import greedy, save

from mmdora.demo.cards import conversation_html
from mmdora.demo.columns import load_columns
from mmdora.demo.compare import answer
from mmdora.demo.inside import Inside
from mmdora.demo.turns import AnswerSettings, new_turn

QUESTION = "nlvr: both are red"
PICTURES = [picture(1), picture(2)]
SETTINGS = AnswerSettings(max_tokens=12)


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    return save(tmp_path_factory.mktemp("vlbart"))


@pytest.fixture(scope="module")
def expected(specs):
    texts = [greedy(path, QUESTION, PICTURES, SETTINGS.max_tokens) for path in specs.values()]
    assert len(set(texts)) == 3, "all alike, so nothing is tested"
    return texts


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared base"])
def test_answers_stream_and_are_those_of_transformers(specs, expected, shared):
    columns = load_columns([f"{n}={p}" for n, p in specs.items()], shared_base=shared, say=lambda _: None)
    assert ["LoRA on base" in column.kind for column in columns] == [False, True, False]
    turn = new_turn(columns, QUESTION, SETTINGS)
    *states, last = answer(columns, [turn], PICTURES)
    assert [state.text for state in last] == expected
    assert all(state.status == "done" and 0 < state.tokens <= SETTINGS.max_tokens for state in last)
    assert len(states) > 6 and all(state.first_token_s for state in last)
    *_, one = answer(columns, [turn], PICTURES[:1])
    assert [state.text for state in one] != expected, "the second picture is not seen"


def test_differing_words_are_marked(specs):
    columns = load_columns([f"{n}={p}" for n, p in specs.items()], say=lambda _: None)
    turn = new_turn(columns, QUESTION, SETTINGS)
    *_, last = answer(columns, [turn], PICTURES)
    shown = [type(turn)(QUESTION, SETTINGS, last, turn.order)]
    pages = [conversation_html(shown, dict.fromkeys(specs, ""), pair) for pair in combinations(specs, 2)]
    assert max(page.count("<mark>") for page in pages) >= 2


def test_a_third_picture_is_told_in_each_column(specs):
    columns = load_columns([f"base={specs['base']}"], say=lambda _: None)
    *_, (state,) = answer(columns, [new_turn(columns, QUESTION, SETTINGS)], [*PICTURES, picture(3)])
    assert state.status == "failed" and "at most 2" in str(state.error)


def test_what_the_adapters_did(specs):
    inside = Inside(specs)
    page = inside.html()
    assert page.count("language") >= 2 and "dora" in page
    assert list(inside.adapters) == ["lora", "dora"] and inside.moved().count("data:image/png") == 3
