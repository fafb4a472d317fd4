import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mmdora.demo import compare
from mmdora.demo.compare import answer
from mmdora.demo.pictures import MAX_UPLOAD, check_upload, read_image
from mmdora.demo.turns import MAX_QUESTION, Answer, AnswerSettings, ModelColumn, check_question, new_turn, prompt_of
from mmdora.errors import MmdoraError
from mmdora.families import ask
from mmdora.predict.answers import Partial, generate

PICTURE = Image.new("RGB", (64, 64), "teal")
QUESTION = "what color is the shape?"


def asked(columns, settings=None, question=QUESTION):
    return [new_turn(columns, question, settings or AnswerSettings())]


def last(states):
    return list(states)[-1]


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0},
        {"max_tokens": 100_000},
        {"max_tokens": 3.5},
        {"max_tokens": True},
        {"max_tokens": None},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "1"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": [1]},
    ],
)
def test_settings_out_of_range(bad):
    with pytest.raises(MmdoraError, match=next(iter(bad)).replace("_", "[ -]")):
        AnswerSettings(**bad)


def test_columns_answer_in_turn_and_as_generate_does(columns, models, processor):
    seen = list(answer(columns, asked(columns, AnswerSettings(max_tokens=24)), [PICTURE]))
    statuses = [tuple(state.status for state in states) for states in seen]
    assert statuses[0] == ("waiting", "waiting")
    assert {("running", "waiting"), ("waiting", "running")} & set(statuses)
    assert ("running", "running") not in statuses, "two models on one device at once"
    expected = [generate(model, processor, [ask(QUESTION, PICTURE)], max_new_tokens=24)[0] for model in models]
    assert [state.text for state in seen[-1]] == expected and expected[0] != expected[1]
    for state in seen[-1]:
        assert state.status == "done" and state.tokens == 24 and state.error is None
        assert state.first_token_s and state.tokens_per_s


def instant(*texts, wait=0.0):
    def speak(prompt, settings, stop):
        for number, text in enumerate(texts, 1):
            time.sleep(wait)
            yield Partial(text, number, 0.1, None)

    return speak


def test_who_answers_first_is_drawn_anew():
    columns = [ModelColumn(name, "", "cpu", instant("x")) for name in "abc"]
    first = Counter()
    for _ in range(60):
        states = next(s for s in answer(columns, asked(columns), [PICTURE]) if any(a.status == "running" for a in s))
        first.update(a.name for a in states if a.status == "running")
    assert set(first) == {"a", "b", "c"}


def test_places_answer_at_once():
    columns = [ModelColumn(name, "", name, instant(*"xxxx", wait=0.1)) for name in "ab"]
    seen = [tuple(a.status for a in states) for states in answer(columns, asked(columns), [PICTURE])]
    assert ("running", "running") in seen and seen[-1] == ("done", "done")


def test_waiting_is_not_in_the_timings(columns, models, slowly):
    slowly(0.05)
    begun = time.monotonic()
    final = last(answer(columns, asked(columns, AnswerSettings(max_tokens=6)), [PICTURE]))
    took = time.monotonic() - begun
    for state in final:
        assert state.first_token_s and state.tokens_per_s
        assert state.first_token_s >= 0.05 and state.tokens_per_s < 20
        assert state.first_token_s + 5 / state.tokens_per_s < 0.75 * took


def test_an_answer_streams(columns, monkeypatch):
    monkeypatch.setattr(compare, "REFRESH", 0)
    lengths = [s[0].tokens for s in answer(columns[:1], asked(columns[:1], AnswerSettings(max_tokens=6)), [PICTURE])]
    assert lengths == [0, 0, 1, 2, 3, 4, 5, 6, 6, 6, 6]


def test_a_silent_model_does_not_keep_the_reader_waiting(monkeypatch):
    monkeypatch.setattr(compare, "HEARTBEAT", 0.05)
    columns = [ModelColumn("a", "", "cpu", instant("x", wait=0.8))]
    assert sum(s[0].status == "running" for s in answer(columns, asked(columns), [PICTURE])) >= 5


def test_the_same_seed_for_every_model(columns):
    twins = [columns[0], replace(columns[0], name="twin")]
    settings = AnswerSettings(max_tokens=16, temperature=1.0, seed=5)
    first, second = last(answer(twins, asked(twins, settings), [PICTURE]))
    assert first.text == second.text
    other = last(answer(twins[:1], asked(twins[:1], replace(settings, seed=6)), [PICTURE]))[0]
    assert other.text != first.text


def test_each_model_sees_its_own_answers(columns):
    first = replace(
        new_turn(columns, "one?", AnswerSettings()), answers=(Answer("base", "done", "A"), Answer("dora", "failed"))
    )
    second = new_turn(columns, "two?", AnswerSettings(system_prompt=" be brief "))
    texts = [
        [(message["role"], [part.get("text", part["type"]) for part in message["content"]])
         for message in prompt_of([first, second], index, [PICTURE]).messages]
        for index in range(2)
    ]  # fmt: skip
    system = ("system", ["be brief"])
    assert texts[0] == [system, ("user", ["image", "one?"]), ("assistant", ["A"]), ("user", ["two?"])]
    assert texts[1] == [system, ("user", ["image", "two?"])]


def test_a_second_question_is_answered_in_the_light_of_the_first(columns, models, processor):
    settings = AnswerSettings(max_tokens=8)
    turn = new_turn(columns, "what shape is it?", settings)
    turn = replace(turn, answers=last(answer(columns, [turn], [PICTURE])))
    final = last(answer(columns, [turn, new_turn(columns, QUESTION, settings)], [PICTURE]))
    content = lambda *parts: [{"type": "text", "text": part} for part in parts]  # noqa: E731
    for index, model in enumerate(models):
        prompt = ask("what shape is it?", PICTURE)
        turns = [("assistant", turn.answers[index].text), ("user", QUESTION)]
        more = [{"role": role, "content": content(text)} for role, text in turns]
        prompt = replace(prompt, messages=[*prompt.messages, *more])
        assert final[index].text == generate(model, processor, [prompt], max_new_tokens=8)[0]
    assert final[0].text != turn.answers[0].text


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("cheese\nis out"), "RuntimeError: cheese is out"),
        (torch.OutOfMemoryError("CUDA"), "out of memory"),
    ],
)
def test_one_failing_model_leaves_the_other_alive(columns, models, error, message):
    def fail(*_):
        raise error

    handle = models[0].register_forward_pre_hook(fail)
    try:
        broken, alive = last(answer(columns, asked(columns, AnswerSettings(max_tokens=3)), [PICTURE]))
    finally:
        handle.remove()
    assert broken.status == "failed" and message in broken.error
    assert alive.status == "done" and alive.tokens == 3
    again = last(answer(columns, asked(columns, AnswerSettings(max_tokens=3)), [PICTURE]))
    assert [state.status for state in again] == ["done"] * 2


def test_stop_ends_the_running_model_and_spares_the_rest(columns, slowly):
    stop, steps = threading.Event(), slowly(0.02)
    states = answer(columns, asked(columns, AnswerSettings(max_tokens=500)), [PICTURE], stop)
    while max(state.tokens for state in next(states)) < 2:
        pass
    before = len(steps)
    stop.set()
    final = last(states)
    assert [state.status for state in final] == ["stopped", "stopped"]
    assert sorted(state.tokens for state in final)[0] == 0
    assert len(steps) == sum(state.tokens for state in final) <= before + 2  # the step under way, and one to see it


def test_closing_frees_the_device(columns):
    states = answer(columns, asked(columns, AnswerSettings(max_tokens=500)), [PICTURE])
    while max(state.tokens for state in next(states)) < 2:
        pass
    assert compare._devices["cpu"].locked()
    begun = time.monotonic()
    states.close()
    assert time.monotonic() - begun < 2 and not compare._devices["cpu"].locked()
    assert not [t for t in threading.enumerate() if t.name in ("mmdora-generate", "mmdora-answer")]


@pytest.mark.parametrize(
    ("question", "system", "message"),
    [
        ("  ", "", "Type a question"),
        (None, "", "Type a question"),
        ("x" * (MAX_QUESTION + 1), "", "limit is 8,000"),
        ("x", "y" * MAX_QUESTION, "limit is 8,000"),
    ],
)
def test_bad_questions(question, system, message):
    with pytest.raises(MmdoraError, match=message):
        check_question(question, AnswerSettings(system_prompt=system))


def test_a_question_of_just_that_length_passes():
    assert check_question(" " + "x" * (MAX_QUESTION - 2) + "\n", AnswerSettings()) == "x" * (MAX_QUESTION - 2)


@pytest.mark.parametrize("check", [check_upload, read_image])
def test_bad_uploads(tmp_path, check):
    upload = tmp_path / "secret" / "picture.png"
    upload.parent.mkdir()
    for content, message in [
        (b"", "empty"),
        (b"<svg/>", "not an image"),
        (b"\0" * (MAX_UPLOAD + 1), "larger than 10 MB"),
    ]:
        upload.write_bytes(content)
        with pytest.raises(MmdoraError, match=message) as caught:
            check(upload)
        assert "secret" not in str(caught.value)
    Image.new("1", (5_000, 4_001)).save(upload)
    with pytest.raises(MmdoraError, match="20 megapixels"):
        check(upload)
    upload.unlink()
    with pytest.raises(MmdoraError, match="no longer on the server") as caught:
        check(upload)
    assert "secret" not in str(caught.value)
