import base64
import io
import json
import threading
import time

import pytest
from openai_stub import serving
from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.families import Prompt, ask
from mmdora.predict.endpoint import Endpoint, Usage

PICTURE = Image.effect_noise((40, 30), 60).convert("RGB")
PROMPT = ask("what is it?", PICTURE)


def words(body):
    return ["a ", "red", " circle"], 17, 4


def test_an_answer_comes_in_pieces_and_is_counted_by_the_server():
    with serving(words) as stub:
        usage: list[Usage] = []
        seen = list(Endpoint(stub.url, "mine").stream(PROMPT, usage=usage))
    assert [part.text for part in seen] == ["a", "a red", "a red circle", "a red circle"]
    assert usage == [Usage(17, 4)] and seen[-1].tokens == 4
    assert seen[0].first_token_s and seen[0].first_token_s > 0 and seen[0].tokens_per_s is None


def test_token_ids_are_asked_for_with_the_counts():
    """The names are those of vLLM's `vllm/entrypoints/openai`: the prompt's ids come once, an answer's in pieces."""

    def with_ids(body):
        return (*words(body), [1, 2, 3], [7, 8, 9, 2])

    with serving(with_ids) as stub:
        usage: list[Usage] = []
        list(Endpoint(stub.url, "mine").stream(PROMPT, usage=usage))
        list(Endpoint(stub.url, "mine").stream(PROMPT))
        assert [body.get("return_token_ids") for body in stub.asked] == [True, None]
    assert usage == [Usage(17, 4, (1, 2, 3), (7, 8, 9, 2))]


@pytest.mark.parametrize("ids", [["a"], [-1], [1.5], [True]])
def test_no_token_is_one_line(ids):
    with (
        serving(lambda body: (*words(body), [1], ids)) as stub,
        pytest.raises(MmdoraError, match="a token that cannot be"),
    ):
        list(Endpoint(stub.url, "mine").stream(PROMPT, usage=[]))


def test_the_request_is_openais():
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        *PROMPT.messages,
    ]
    with serving(words) as stub:
        endpoint = Endpoint(stub.url, "mine")
        list(endpoint.stream(Prompt(messages, [PICTURE]), max_new_tokens=9, temperature=0.5, top_p=0.9, seed=3))
        (body,) = stub.asked
    assert stub.paths == ["/v1/chat/completions"]
    rest = {key: value for key, value in body.items() if key != "messages"}
    assert rest == {
        "model": "mine", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    system, user = body["messages"]
    assert system == messages[0]
    picture, question = user["content"]
    assert question == {"type": "text", "text": "what is it?"}
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as sent:
        assert sent.tobytes() == PICTURE.tobytes()


def test_without_a_count_pieces_are_counted():
    with serving(words, mode="silent") as stub:
        usage: list[Usage] = []
        *_, last = Endpoint(stub.url, "mine").stream(PROMPT, usage=usage)
    assert last.tokens == 3 and usage == []


def test_an_answer_without_end_is_one_line():
    with (
        serving(lambda body: (["word " * 1000] * 101, 17, 4)) as stub,
        pytest.raises(MmdoraError, match="does not end"),
    ):
        list(Endpoint(stub.url, "mine").stream(PROMPT))


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("redirect", r"redirect \(307\), which is not followed"),
        ("refuse", r"refuses \(400\): maximum context length is 4096"),
        ("html", "no answer of an OpenAI-compatible server"),
        ("cut", "breaks off"),
    ],
)
def test_what_is_no_answer_is_one_line(mode, message):
    with serving(words, mode=mode) as stub:
        with pytest.raises(MmdoraError, match=message) as caught:
            list(Endpoint(stub.url, "mine").stream(PROMPT))
        assert "\n" not in str(caught.value) and stub.paths == ["/v1/chat/completions"]


def test_nobody_there():
    with serving(words) as stub:
        url = stub.url
    with pytest.raises(MmdoraError, match="cannot be reached"):
        list(Endpoint(url, "mine").stream(PROMPT))


@pytest.mark.parametrize("how", ["stop", "close"])
def test_stopping_hangs_up(how):
    stop = threading.Event()
    with serving(words, mode="hang") as stub:
        parts = Endpoint(stub.url, "mine").stream(PROMPT, stop=stop)
        assert next(parts).text == "a"
        begun = time.monotonic()
        if how == "stop":
            stop.set()
            assert [part.text for part in parts] == ["a"]
        else:
            parts.close()
        assert time.monotonic() - begun < 2
        assert stub.left.wait(5), "the server still generates"


def test_the_name_may_be_left_out_where_there_is_one():
    with serving(words, "only") as stub:
        assert Endpoint.parse(stub.url) == Endpoint(stub.url, "only")
        assert Endpoint.parse(f"{stub.url}/#other") == Endpoint(stub.url, "other")
    with serving(words, "one", "two") as stub, pytest.raises(MmdoraError, match="serves one, two; name one"):
        Endpoint.parse(stub.url)


@pytest.mark.parametrize("spec", ["", "localhost:8000/v1#m", "ftp://host/v1#m", "http:///v1#m", "http://a:b@host/v1#m"])
def test_urls_that_are_none(spec):
    with pytest.raises(MmdoraError, match="expected http://HOST:PORT/v1#MODEL"):
        Endpoint.parse(spec)


def test_no_proxy_is_asked(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(words) as stub:
        *_, last = Endpoint(stub.url, "mine").stream(PROMPT)
    assert last.text == "a red circle"
    assert json.dumps(stub.asked)
