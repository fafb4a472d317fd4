"""The page's API and its rules, without a browser; `tests/browser` has the rest."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import gradio as gr
import httpx
import pytest
from demo_page import free_port, serving
from gradio_client import Client, handle_file
from PIL import Image

from mmdora.cli import main
from mmdora.data_prep.easy_vqa import samples
from mmdora.demo import app, cards, server, talk
from mmdora.demo.access import Access
from mmdora.demo.answering import local
from mmdora.demo.hosts import Allowed
from mmdora.demo.inside import Inside
from mmdora.demo.session import Session
from mmdora.demo.turns import Answer, AnswerSettings, ModelColumn, Turn
from mmdora.demo.votes import Votes, share
from mmdora.errors import MmdoraError
from mmdora.families import Prompt, ask
from mmdora.predict.answers import Token, generate

QUESTION = "what color is the shape?"


@pytest.fixture(scope="module")
def served(models, processor, tmp_path_factory):
    made = [
        ModelColumn(n, "a model", "cpu", local(m, processor)) for n, m in zip(("base", "dora"), models, strict=True)
    ]
    with serving(made, examples=2) as page:
        yield page
    assert not page.folder.exists()


@pytest.fixture(scope="module")
def url(served):
    return served.url


@pytest.fixture
def client(url):
    return Client(url, verbose=False, analytics_enabled=False)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "teal").save(path)
    return path


def test_compare_streams_and_ends_with_every_answer(client, models, processor, picture):
    job = client.submit(image=handle_file(picture), question=QUESTION, max_tokens=60, api_name="/compare")
    seen = list(job)
    assert len(seen) > 4, "the answers came at once"
    assert [state["status"] for state in seen[0]] == ["waiting", "waiting"]
    with Image.open(picture) as image:
        prompts = [ask(QUESTION, image.convert("RGB"))]
    for state, name, model in zip(job.result(), ("base", "dora"), models, strict=True):
        assert (state["name"], state["status"], state["tokens"]) == (name, "done", 60)
        assert state["first_token_s"] > 0 and state["tokens_per_s"] > 0 and state["error"] is None
        assert state["text"] == generate(model, processor, prompts, max_new_tokens=60)[0]


def test_a_question_about_two_pictures(client, models, processor, picture, tmp_path):
    Image.new("RGB", (64, 64), "gold").save(tmp_path / "second.png")
    pictures = [Image.new("RGB", (64, 64), color) for color in ("teal", "gold")]
    prompt = Prompt(
        [{"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": QUESTION}]}], pictures
    )
    expected = [generate(model, processor, [prompt], max_new_tokens=12)[0] for model in models]
    given = {"image": handle_file(picture), "question": QUESTION, "max_tokens": 12, "api_name": "/compare"}
    answers = client.predict(**given, second_image=handle_file(tmp_path / "second.png"))
    assert [state["text"] for state in answers] == expected
    assert [state["text"] for state in client.predict(**given)] != expected


def test_the_api_has_one_endpoint_with_defaults(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/compare"]
    assert {p["parameter_name"]: p["parameter_default"] for p in endpoints["/compare"]["parameters"][2:]} == {
        "max_tokens": 128,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "system_prompt": "",
        "second_image": None,
    }


def test_a_question_without_a_picture(client, models, processor):
    expected = [generate(model, processor, [ask(QUESTION)], max_new_tokens=12)[0] for model in models]
    answers = client.predict(image=None, question=QUESTION, max_tokens=12, api_name="/compare")
    assert [answer["text"] for answer in answers] == expected


def test_models_that_read_text_alone_have_no_place_for_a_picture(columns):
    blind = [replace(column, sees=False) for column in columns]
    for given, sees in ((columns, True), ([columns[0], blind[1]], True), (blind, False)):
        with server.upload_folder():
            page = app.Page(given, samples(1), Votes(["base", "dora"]), Inside({}))
            shown = json.dumps(page.blocks.get_config_file(), default=str)
        assert ("One picture, one conversation" in shown) == ("about the picture?" in shown) == sees
        assert len(page.examples) == sees


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "  "}, "Type a question first"),
        ({"question": "x" * 100_000}, "limit is 8,000"),
        ({"system_prompt": "x" * 8_000}, "limit is 8,000"),
        ({"system_prompt": ["x"]}, "system prompt: expected text"),
        ({"max_tokens": 10**9}, "max tokens: expected"),
        ({"temperature": "hot"}, "temperature: expected"),
    ],
)
def test_limits_hold_for_api_callers(client, picture, change, message):
    given = {"image": handle_file(picture), "question": QUESTION, "max_tokens": 2, **change}
    with pytest.raises(Exception, match=message):
        client.predict(**given, api_name="/compare")


def test_what_gradio_keeps_of_each_caller_does_not_add_up(served, url):
    """76 KiB of each request through the API that brings no session of its own, and of each tab."""
    with httpx.Client(base_url=f"{url}gradio_api/call/compare") as http:
        for _ in range(30):
            event = http.post("", json={"data": [None, "", 1, 0, 1, 0, "", None]}).json()["event_id"]
            assert "event: error" in http.get(event).text
    assert 0 < len(served.page.blocks.app.state_holder.session_data) <= 4 + 16


def test_an_upload_that_is_no_image_is_told(client, tmp_path):
    (tmp_path / "x.png").write_text("not a picture")
    with pytest.raises(Exception, match="not an image of a known format"):
        client.predict(image=handle_file(tmp_path / "x.png"), question=QUESTION, api_name="/compare")


def test_an_upload_over_the_limit_is_refused(client, tmp_path):
    (tmp_path / "x.png").write_bytes(b"\0" * 11_000_000)
    with pytest.raises(Exception, match=r"(?i)exceeds|413"):
        client.predict(image=handle_file(tmp_path / "x.png"), question=QUESTION, api_name="/compare")


@pytest.mark.parametrize(
    "image",
    [
        {"path": "SECRET", "meta": {"_type": "gradio.FileData"}},
        {"path": "SECRET"},
        {"url": "file://SECRET", "meta": {"_type": "gradio.FileData"}},
        {"path": "../../../../../../../../SECRET", "meta": {"_type": "gradio.FileData"}},
        {"path": "https://example.org/a.png", "meta": {"_type": "gradio.FileData"}},
        "SECRET",
    ],
)
def test_only_uploads_are_read(url, picture, image, monkeypatch):
    """Straight to the endpoint, since the client library uploads the files it is given."""
    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", None)  # calling it would raise
    image = json.loads(json.dumps(image).replace("SECRET", str(picture)))
    asked = httpx.post(f"{url}gradio_api/call/compare", json={"data": [image, QUESTION, 2, 0, 1, 0, "", None]})
    told = httpx.get(f"{url}gradio_api/call/compare/{asked.json()['event_id']}", timeout=20).text
    assert "event: error" in told and "tokens_per_s" not in told


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "../../etc/passwd", "pyproject.toml", "file:///etc/passwd",
     "https://example.org/a.png", "%2Fetc%2Fpasswd", "/proc/self/environ"],
)  # fmt: skip
def test_no_other_file_is_served(url, path):
    for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/"):
        assert httpx.get(f"{url}{route}{path}", timeout=20).status_code in (403, 404)


def test_busy_with_a_position_and_at_once_where_the_queue_is_full(client, picture, slowly):
    slowly(0.5)  # longer than all of this takes, however busy the machine is
    given = {"image": handle_file(picture), "question": QUESTION, "max_tokens": 20, "api_name": "/compare"}
    jobs = [client.submit(**given)]
    while not jobs[0].outputs():
        time.sleep(0.01)
    jobs += [client.submit(**given) for _ in range(3)]
    while not all(job.outputs() for job in jobs):
        time.sleep(0.01)
    begun = time.monotonic()
    with pytest.raises(Exception, match="Busy: 4 questions"):
        client.predict(**given)
    assert time.monotonic() - begun < 5
    assert all(job.outputs()[-1][0]["status"] == "queued" for job in jobs[2:]), "it was told only when there was place"
    first = [job.outputs()[0][0] for job in jobs[1:]]
    assert {(state["status"], state["position"]) for state in first} == {("queued", 1), ("queued", 2), ("queued", 3)}
    slowly(0)
    for job in jobs:
        assert [(state["status"], state["tokens"]) for state in job.result(timeout=60)] == [("done", 20)] * 2


STEP = 0.02  # seconds that each token takes at least


def _freed(served, steps, before):
    """Free again after at most 2 s of generating.

    Counted in tokens, which a busy machine delays as it delays the news that nobody listens; the deadline is only
    there to end a failing test.
    """
    deadline = time.monotonic() + 30
    while len(served.page.line) or any(thread.name == "mmdora-generate" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "generation went on"
        time.sleep(0.01)
    assert len(steps) - before < 2 / STEP


def test_cancelling_frees_the_models(served, client, picture, slowly):
    steps = slowly(STEP)
    job = client.submit(image=handle_file(picture), question=QUESTION, max_tokens=1000, api_name="/compare")
    while len(steps) < 5:
        time.sleep(0.01)
    before = len(steps)
    job.cancel()
    _freed(served, steps, before)
    assert client.predict(image=handle_file(picture), question=QUESTION, max_tokens=1, api_name="/compare")


def test_a_client_that_vanishes_frees_the_models(served, url, client, picture, slowly):
    steps = slowly(STEP)
    with picture.open("rb") as file:
        (path,) = httpx.post(f"{url}gradio_api/upload", files={"files": file}).json()
    image = {"path": path, "meta": {"_type": "gradio.FileData"}}
    asked = httpx.post(f"{url}gradio_api/call/compare", json={"data": [image, QUESTION, 1000, 0, 1, 0, "", None]})
    with httpx.stream("GET", f"{url}gradio_api/call/compare/{asked.json()['event_id']}", timeout=20) as told:
        texts = told.iter_text()  # kept: a generator that is dropped hangs up
        while len(steps) < 5:
            next(texts)
        before = len(steps)
    _freed(served, steps, before)


def test_what_models_and_users_write_is_text():
    nasty = '<script>alert(1)</script><img src=x onerror="alert(2)">${1+1}{{value}}'
    answers = (Answer(nasty, "failed", nasty, error=nasty), Answer("b", "done", "other <b>words</b>"))
    turn = Turn(nasty, AnswerSettings(system_prompt=nasty), answers, (0, 1), True, nasty)
    page = cards.conversation_html([turn], {nasty: nasty, "b": nasty}, (nasty, "b"))
    page += cards.idle_html({nasty: nasty}) + cards.tally_html({nasty: share(1, 2)}, {nasty: 1})
    assert "<script" not in page and "<img" not in page and "<b>w" not in page and page.count("&lt;script&gt;") > 10


def marks(turn, pair):
    return re.findall("<mark>(.*?)</mark>", cards.conversation_html([turn], dict.fromkeys("abc", ""), pair))


def test_words_are_marked_between_the_two_that_the_reader_chose():
    answers = tuple(
        Answer(name, "done", text) for name, text in zip("abc", ("a red box", "a red hat", "it"), strict=True)
    )
    turn = Turn("what?", AnswerSettings(), answers, (2, 0, 1))
    assert marks(turn, ("a", "b")) == ["box", "hat"] and marks(turn, ("b", "c")) == ["it", "a red hat"]
    assert marks(turn, None) == []
    assert marks(replace(turn, blind=True), ("a", "b")) == [], "marks would tell which two are the pair"
    assert marks(replace(turn, blind=True, vote="tie"), ("a", "b")) == ["box", "hat"]
    two = Turn("what?", AnswerSettings(), answers[:2], (1, 0), blind=True)
    assert marks(two, ("a", "b")) == ["hat", "box"]


def test_equal_answers_say_so():
    answers = tuple(Answer(name, "done", "red") for name in "ab")
    turn = Turn("what?", AnswerSettings(), answers, (1, 0))
    assert "b and a: the same answer" in cards.conversation_html([turn], dict.fromkeys("ab", ""), ("a", "b"))
    other = replace(turn, answers=(answers[0], replace(answers[1], text="Red")))
    assert "the same answer" not in cards.conversation_html([other], dict.fromkeys("ab", ""), ("a", "b"))


def test_the_first_token_at_which_two_answers_part():
    said = {"a": ("a", "red", "hat"), "b": ("a", "blue", "box")}
    answers = tuple(
        Answer(
            name,
            "done",
            " ".join(words),
            first_tokens=tuple(Token(word, 0.75, ((word, 0.75), ("red", 0.125))) for word in words),
        )
        for name, words in said.items()
    )
    page = cards.conversation_html([Turn("?", AnswerSettings(), answers, (0, 1))], dict.fromkeys("ab", ""), ("a", "b"))
    assert "They part at token 2: a said “red” (75.0%; “blue” under 12.5%); b said “blue” (75.0%; “red” 12.5%)." in page
    assert page.count('class="tokens"') == 2 and 'title="“hat” 75.0%; likeliest here: “hat” 75.0%, “red” 12.5%"' in page
    hidden = Turn("?", AnswerSettings(), answers, (0, 1), blind=True)
    page = cards.conversation_html([hidden], dict.fromkeys("ab", ""), ("a", "b"))
    assert "part at" not in page and "tokens" not in page, "probabilities may tell the model"


def test_a_later_visitor_sees_the_votes_until_then(columns):
    page = app.Page(columns, [], Votes(["base", "dora"]), Inside({}))
    page.votes.counts["dora"] = 3
    request: Any = gr.Request(session_hash="later")
    request.query_params = {}
    assert "3" in page._opened(request, "", "")[-2]


def test_an_example_is_chosen_by_its_number(columns):
    with server.upload_folder():
        page = app.Page(columns, samples(2), Votes(["base", "dora"]), Inside({}))
        assert page._example_chosen(gr.EventData(None, {"example": "2"}))[1] == samples(2)[1][1]
        for wrong in ("0", "3", "-1", "x", None, "9" * 9999):
            assert page._example_chosen(gr.EventData(None, {"example": wrong})) == [gr.skip(), gr.skip()]


def test_a_vote_is_taken_back_once_and_the_names_stay(columns):
    page = app.Page(columns, [], Votes(["base", "dora"]), Inside({}))
    request = gr.Request(session_hash="a tab")
    tab = page.talk.of(request)
    answers = (Answer("base", "done", "red"), Answer("dora", "done", "blue"))
    tab.turns = [Turn("what?", AnswerSettings(), answers, (1, 0), True)]
    page.talk.vote(0)(request)
    assert page.votes.counts["dora"] == 1 and tab.undoable
    for _ in range(2):
        told, newest, *_ = page.talk.undo(request)
        assert page.votes.counts["dora"] == 0 and told == "" and "Model A" not in newest and "dora" in newest
    assert not tab.undoable and not tab.votable


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_other_machines_need_a_login(host):
    with pytest.raises(MmdoraError, match="add --auth-file FILE, or --insecure"):
        server.serve(["base=tiny-llava"], Access(host=host))
    with pytest.raises(MmdoraError, match=r"--share.*add --auth-file"):
        server.serve(["base=tiny-llava"], Access(share=True))


def test_without_login_no_route_answers_and_guessing_is_slowed_down(columns, picture):
    with serving(columns, logins={"anna": "secret"}) as page:
        url = page.url
        for path in ("config", "gradio_api/info", "gradio_api/queue/data?session_hash=x", "gradio_api/file=x"):
            assert httpx.get(url + path).status_code == 401, path
        assert page.upload(picture.read_bytes()).status_code == 401
        for path in ("gradio_api/call/compare", "gradio_api/queue/join", "gradio_api/run/compare"):
            assert page.post(path, json={"data": [], "session_hash": "x"}).status_code in (401, 422), path
        assert Client(url, auth=("anna", "secret"), verbose=False, analytics_enabled=False)
        assert [page.login("anna", str(n)) for n in range(20)] == [400] * 5 + [429] * 15


def test_another_question_leaves_the_one_that_runs_stoppable(columns):
    page = app.Page(columns, [], Votes(["base", "dora"]), Inside({}))
    tab = Session(busy=True)
    ask, stop, *_ = page.talk.controls(tab)
    assert (ask["interactive"], stop["interactive"]) == (False, True)


def test_what_comes_after_clear_shows_the_cleared_page(columns, picture, monkeypatch):
    """Clear's reply may overtake a state of the running answer; the last states that come must not undo it."""
    page = app.Page(columns, [], Votes(["base", "dora"]), Inside({}))
    request = gr.Request(session_hash="a tab")
    monkeypatch.setattr(talk, "upload_paths", lambda *_: (picture,))

    async def ask_and_clear():
        asked = page.talk.ask(request, None, None, QUESTION, 500, 0, 1, 0, "", False)
        before = await anext(asked)
        cleared = page.talk.clear(request)[2:]
        return before, cleared, [state async for state in asked]

    before, cleared, [*_, shown, last] = asyncio.run(ask_and_clear())
    skip = gr.skip()
    assert QUESTION in before[0] and QUESTION not in cleared[0]
    assert shown[:2] == cleared[:2] and shown[2:] == [skip] * 8
    assert last == [skip] * 10, "Gradio sends the last state twice"
    assert not page.line


def test_a_busy_port_is_told(url, columns):
    port = int(url.rstrip("/").rpartition(":")[2])
    page = app.Page(columns, [], Votes(["base", "dora"]), Inside({}))
    with pytest.raises(MmdoraError, match=f"port {port} on 127.0.0.1 cannot be used"):
        server.launch(page, Access(port=port), Allowed(), None)


def test_the_command_serves_other_machines_after_a_login_and_sigterm_ends_it_cleanly(tmp_path):
    logins = tmp_path / "logins.txt"
    logins.write_text("anna:secret\n")
    logins.chmod(0o600)
    port = free_port()
    command = [sys.executable, "-m", "mmdora", "demo", "base=tiny-llava", "--host", "0.0.0.0", "--port", str(port)]
    command += ["--auth-file", str(logins)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert f":{port}/" in next(line for line in run.stdout if line.startswith("mmdora:"))
    url = f"http://127.0.0.1:{port}/"
    assert httpx.get(url + "config").status_code == 401
    assert Client(url, auth=("anna", "secret"), verbose=False, analytics_enabled=False)
    run.terminate()
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0 and "Traceback" not in out + err


def test_the_command_serves_other_machines_without_a_login_where_that_is_asked_for(capsys):
    """In this process, because a new one takes seconds to import Gradio."""
    handler, port, codes = signal.getsignal(signal.SIGTERM), free_port(), list[int]()

    def visit() -> None:
        while signal.getsignal(signal.SIGTERM) is handler:
            time.sleep(0.01)
        while not codes:
            with contextlib.suppress(httpx.ConnectError):
                codes.append(httpx.get(f"http://127.0.0.1:{port}/config", timeout=60).status_code)
        os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit, daemon=True)
    visitor.start()
    assert main(["demo", "base=tiny-llava", "--host", "0.0.0.0", "--port", str(port), "--insecure"]) == 0
    visitor.join()
    told = capsys.readouterr()
    assert codes == [200] and signal.getsignal(signal.SIGTERM) is handler
    assert f":{port}/" in told.out and "Traceback" not in told.out + told.err
