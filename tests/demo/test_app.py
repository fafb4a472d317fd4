"""The page's API and its rules, without a browser; `tests/browser` has the rest."""

import json
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmdora.demo import app, cards
from mmdora.demo.compare import Answer, Column, examples
from mmdora.errors import MmdoraError
from mmdora.predict import ask, generate

QUESTION = "what color is the shape?"


@pytest.fixture(scope="module")
def columns(tiny_llava):
    processor = AutoProcessor.from_pretrained(tiny_llava)
    made = []
    for name in ("base", "dora"):
        model = AutoModelForImageTextToText.from_pretrained(tiny_llava).eval()
        model.generation_config.suppress_tokens = [model.generation_config.eos_token_id]
        made.append(Column(name, model, processor, "a model"))
    return made


@pytest.fixture(scope="module")
def url(columns):
    page = app.build(columns, examples(2))
    app._launch(page, "127.0.0.1", _free_port())
    yield page.local_url
    page.close(verbose=False)


@pytest.fixture
def client(url):
    return Client(url, verbose=False, analytics_enabled=False)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "teal").save(path)
    return path


def test_compare_streams_and_ends_with_every_answer(client, columns, picture):
    job = client.submit(image=handle_file(picture), question=QUESTION, max_tokens=60, api_name="/compare")
    seen = list(job)
    assert len(seen) > 4, "the answers came at once"
    assert [state["status"] for state in seen[0]] == ["waiting", "waiting"]
    with Image.open(picture) as image:
        prompts = [ask(QUESTION, image.convert("RGB"))]
    for state, column in zip(job.result(), columns, strict=True):
        assert (state["name"], state["status"], state["tokens"]) == (column.name, "done", 60)
        assert state["first_token_s"] > 0 and state["tokens_per_s"] > 0 and state["error"] is None
        assert state["text"] == generate(column.model, column.processor, prompts, max_new_tokens=60)[0]


def test_the_api_has_one_endpoint_with_defaults(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/compare"]
    assert {p["parameter_name"]: p["parameter_default"] for p in endpoints["/compare"]["parameters"][2:]} == {
        "max_tokens": 128,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "  "}, "Type a question first"),
        ({"question": "x" * 100_000}, "limit is 8,000"),
        ({"max_tokens": 10**9}, "max tokens: expected"),
        ({"temperature": "hot"}, "temperature: expected"),
        ({"image": None}, "Choose a picture first"),
    ],
)
def test_limits_hold_for_api_callers(client, picture, change, message):
    given = {"image": handle_file(picture), "question": QUESTION, "max_tokens": 2, **change}
    with pytest.raises(Exception, match=message):
        client.predict(**given, api_name="/compare")


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
    asked = httpx.post(f"{url}gradio_api/call/compare", json={"data": [image, QUESTION, 2, 0, 1, 0]})
    told = httpx.get(f"{url}gradio_api/call/compare/{asked.json()['event_id']}", timeout=20).text
    assert "event: error" in told and "tokens_per_s" not in told


def test_cancelling_frees_the_models(client, columns, picture):
    steps = []
    handle = columns[0].model.register_forward_pre_hook(lambda *_: steps.append(time.sleep(0.02)))
    try:
        job = client.submit(image=handle_file(picture), question=QUESTION, max_tokens=1000, api_name="/compare")
        while len(steps) < 5:
            time.sleep(0.01)
        job.cancel()
        end = time.monotonic() + 2
        while any(thread.name == "mmdora-generate" for thread in threading.enumerate()):
            assert time.monotonic() < end, "generation went on after the job was cancelled"
            time.sleep(0.01)
    finally:
        handle.remove()
    assert client.predict(image=handle_file(picture), question=QUESTION, max_tokens=1, api_name="/compare")


def test_what_models_and_users_write_is_text():
    nasty = '<script>alert(1)</script><img src=x onerror="alert(2)">${1+1}{{value}}'
    page = cards.answers_html([Answer(nasty, "failed", nasty, error=nasty)], [nasty])
    assert "<script" not in page and "<img" not in page and page.count("&lt;script&gt;") == 5


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_other_hosts_are_refused(host):
    with pytest.raises(MmdoraError, match="this machine only"):
        app.serve(["base=tiny-llava"], host=host)


def test_a_busy_port_is_told(url, columns):
    port = int(url.rstrip("/").rpartition(":")[2])
    with pytest.raises(MmdoraError, match=f"port {port} on 127.0.0.1 cannot be used"):
        app._launch(app.build(columns, []), "127.0.0.1", port)


def test_sigterm_ends_the_server_cleanly(tiny_llava):
    code = f"from mmdora.demo.app import serve; serve(['base={tiny_llava}'], port={_free_port()})"
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    line = next(line for line in run.stdout if line.startswith("mmdora:"))
    assert "http://127.0.0.1:" in line
    run.terminate()
    out, err = run.communicate(timeout=20)
    assert run.returncode == 0 and "Traceback" not in out + err


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
