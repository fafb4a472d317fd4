"""A set of questions that all models answer: the answers, marks, scores, filters, files, and the turn of others."""

import asyncio
import csv
import io
import json
import threading
from dataclasses import replace

import gradio as gr
import pytest
from demo_page import COLUMNS

from mmdora.data_prep.easy_vqa import test_rows as easy_vqa_rows
from mmdora.demo import many_html, many_tab
from mmdora.demo.answering import in_batches
from mmdora.demo.line import Line
from mmdora.demo.many import CHUNK, MOST, Round
from mmdora.demo.many_tab import ManyTab
from mmdora.demo.question_sets import QuestionSet
from mmdora.demo.turns import ModelColumn
from mmdora.errors import MmdoraError
from mmdora.evaluate.run import evaluate
from mmdora.evaluate.tasks import task_of
from mmdora.predict.answers import Partial

ROWS = easy_vqa_rows()
SET = QuestionSet("easy-VQA: test", task_of("easy-vqa"), ROWS)


def column(name, answer):
    """A model whose answer is a function of the question and the expected answer."""

    def reply(task, rows, stop):
        return [answer(row) for row in rows]

    return ModelColumn(name, "a model", "here", COLUMNS[0].speak, reply=reply)


def expected(row):
    return row["messages"][-1]["content"][0]["text"]


RIGHT = column("right", expected)
ODD = column("odd", lambda row: expected(row) if int(row["id"].split("-")[1]) % 2 else "<b>no idea</b>")


def answered(questions, columns, count):
    done = Round.of(questions, columns, count, 0)
    while not done.finished:
        for _ in done.step(threading.Event()):
            pass
    return done


def test_every_model_answers_and_is_scored_as_eval_scores():
    done = answered(SET, [RIGHT, ODD], 20)
    assert done.done == 20 and done.left_s == 0
    share = sum(int(asked["id"].split("-")[1]) % 2 for asked in done.asked) / 20
    assert done.compared.scores["right"].overall.value == 1 and done.compared.scores["odd"].overall.value == share
    assert done.compared.pairs["right", "odd"].difference == pytest.approx(share - 1)
    table = many_html.table_html(done)
    assert table.count("<tr data-row") == 20 and table.count('data-right="0 1"') == 20 * share
    assert table.count('data-right="0" data-wrong="1" data-differ="1"') == 20 - 20 * share
    assert "<b>no idea" not in table and "&lt;b&gt;no idea" in table
    assert "data:image/jpeg" in table
    assert "right is better" in many_html.scores_html(done)
    assert ("odd right, right wrong", "1>0") in many_html.choices(["right", "odd"])


def test_the_files_hold_every_answer():
    done = answered(SET, [RIGHT, ODD], 5)
    rows = list(csv.DictReader(io.StringIO(many_html.as_csv(done))))
    told = json.loads(many_html.as_json(done))
    assert [row["id"] for row in rows] == [row["id"] for row in told["rows"]] and len(rows) == 5
    assert [row["right score"] for row in rows] == ["1.0"] * 5
    assert told["rows"][0]["answers"] == {"right": rows[0]["expected"], "odd": rows[0]["odd"]}
    assert told["comparison"]["scores"]["right"]["overall"]["score"] == 1


def test_the_draw_is_seeded_and_bounded():
    ids = [[row["id"] for row in Round.of(SET, COLUMNS, 30, seed).rows] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2] and len(set(ids[0])) == 30
    assert len(Round.of(SET, COLUMNS, 10_000, 0).rows) == MOST


def test_a_model_that_fails_is_told_and_the_others_go_on():
    def broken(row):
        raise MmdoraError("no memory left")

    done = answered(SET, [column("broken", broken), RIGHT], CHUNK + 1)
    assert done.done == CHUNK + 1 and list(done.compared.scores) == ["right"]
    assert "broken failed: no memory left" in many_html.scores_html(done)


def test_questions_without_answers_are_asked_and_not_scored():
    rows = [{**row, "messages": [*row["messages"][:-1], {"role": "assistant", "content": []}]} for row in ROWS[:3]]
    done = answered(replace(SET, rows=rows), [column("a", lambda row: "red"), column("b", lambda row: "blue")], 3)
    assert done.done == 3 and "no question has a known answer" in many_html.scores_html(done)
    assert 'data-right=""' in many_html.table_html(done) and json.loads(many_html.as_json(done))["comparison"] == {}


def test_a_model_behind_a_server_is_asked_one_by_one_in_the_words_of_the_task():
    asked = []

    def speak(prompt, settings, stop):
        asked.append((prompt, settings.max_tokens))
        yield Partial("re", 1, 0.1, None)
        yield Partial("red", 2, 0.1, None)

    served = ModelColumn("served", "a model", "there", speak)
    questions = QuestionSet("own", task_of("winogrande"), ROWS[:2])
    texts = Round.of(questions, [served], 2, 0)
    for _ in texts.step(threading.Event()):
        pass
    assert texts.texts["served"] == ["red", "red"] and asked[0][1] == 32
    assert asked[0][0].messages[-1]["content"][-1]["text"].endswith("given choices directly.")
    assert asked[0][0].images[0].size == (64, 64)


def test_a_model_here_answers_as_eval_does(models, processor):
    own = ModelColumn("own", "", "cpu", COLUMNS[0].speak, reply=in_batches(models[0], processor))
    task = replace(task_of("easy-vqa"), max_new_tokens=4)
    done = answered(QuestionSet("x", task, ROWS[:3]), [own], 3)
    expected_rows = evaluate(models[0], processor, ROWS[:3], task=task, batch_size=3).rows
    assert done.texts["own"] == [row["prediction"] for row in expected_rows]
    stop = threading.Event()
    stop.set()
    assert all(len(text) < 40 for text in in_batches(models[0], processor)(task_of("easy-vqa"), ROWS[:2], stop))


@pytest.fixture
def tab():
    with gr.Blocks():
        return ManyTab([RIGHT, ODD], Line(4), [SET])


REQUEST = gr.Request(session_hash="a tab")


def run(made, *given, then=lambda state: None):
    async def all_states():
        states = []
        async for state in made._ask(REQUEST, *given):
            states.append(state)
            then(state)
        return states

    return asyncio.run(all_states())


def test_the_tab_tells_its_progress_and_ends_with_scores_and_table(tab):
    tab._begin(REQUEST)
    states = run(tab, SET.name, 3 * CHUNK, 0, None)
    told = [state[0] for state in states if isinstance(state[0], str)]
    assert f"0 of {3 * CHUNK} questions" in told[0] and any("left" in bar for bar in told[1:-1])
    *_, last = states
    assert f"{3 * CHUNK} of {3 * CHUNK} questions" in last[0] and "is better" in last[1]
    assert last[2]["visible"] and last[4].count("data-row") == 3 * CHUNK
    assert (last[5]["interactive"], last[6]["interactive"]) == (True, False)
    assert not tab.line and not tab._of(REQUEST).busy


def test_stop_keeps_what_is_answered(tab):
    tab._begin(REQUEST)
    *_, last = run(tab, SET.name, MOST, 0, None, then=lambda state: _done(tab) >= CHUNK and tab._stop(REQUEST))
    assert CHUNK <= _done(tab) < MOST and last[4].count("data-row") == _done(tab)


def _done(tab):
    asked = tab._of(REQUEST).round
    return asked.done if asked else 0


def test_a_question_of_another_visitor_comes_between(tab):
    """A set gives its place away after every few questions."""
    done_at = []

    async def other():
        while _done(tab) == 0:
            await asyncio.sleep(0)
        async for _ in tab.line.run(lambda: (one for one in [1]), lambda position: position):
            done_at.append(_done(tab))

    async def both():
        tab._begin(REQUEST)
        beside = asyncio.create_task(other())
        async for _ in tab._ask(REQUEST, SET.name, MOST, 0, None):
            await asyncio.sleep(0)
        await beside

    asyncio.run(both())
    assert done_at and done_at[0] < MOST


def test_a_click_opens_the_question_in_compare(tab):
    tab._begin(REQUEST)
    run(tab, SET.name, 3, 0, None)
    row = tab._of(REQUEST).round.rows[1]
    first, second, question, chosen = tab._open(REQUEST, gr.EventData(None, {"row": "1"}))
    assert first.read_bytes() == row["images"][0].path.read_bytes() and second is None
    assert question == row["messages"][0]["content"][-1]["text"] and chosen.selected == "compare"
    for wrong in ({"row": "3"}, {"row": "-1"}, {"row": "../1"}, {"row": "٣"}, {}, None, {"row": "9" * 5000}):
        assert tab._open(REQUEST, gr.EventData(None, wrong)) == [gr.skip()] * 4


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("no such set", 3, 0, None), "no such set"),
        ((SET.name, "many", 0, None), "How many: expected a whole number"),
        ((SET.name, 3, -1, None), "Seed: expected"),
        ((many_tab.OWN, 3, 0, None), "Upload a ZIP"),
        ((many_tab.OWN, 3, 0, {"path": "/etc/passwd"}), "no upload to this page"),
    ],
)
def test_what_cannot_be_asked_is_told_and_frees_the_button(tab, given, told):
    states = []
    with pytest.raises(gr.Error, match=told):
        run(tab, *given, then=states.append)
    assert states[-1][5]["interactive"] and not tab._of(REQUEST).busy


def test_a_closed_tab_stops_its_round(tab):
    tab._begin(REQUEST)
    run(tab, SET.name, MOST, 0, None, then=lambda state: tab.leave(REQUEST))
    assert not tab.line
