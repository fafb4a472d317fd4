import os
import time

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from mmdora.demo import guard
from mmdora.demo.guard import Cache, Guard, read_logins
from mmdora.errors import MmdoraError


@pytest.fixture
def client(tmp_path):
    async def login(request):
        form = await request.body()
        return JSONResponse({}, 200 if form == b"right" else 400)

    async def echo(request):
        return JSONResponse({"size": len(await request.body())})

    routes = [Route("/login", login, methods=["POST"]), Route("/{path:path}", echo, methods=["GET", "POST"])]
    app = Starlette(routes=routes, middleware=[Middleware(Guard, uploads=tmp_path)])

    def connect(address="1.2.3.4"):
        return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 1)), base_url="http://page")

    return connect


async def _codes(client, bodies):
    return [(await client.post("/login", content=body)).status_code for body in bodies]


def _run(step):
    import asyncio

    return asyncio.run(step)


def test_failed_logins_slow_down_and_others_do_not_notice(client, monkeypatch):
    assert _run(_codes(client(), [b"wrong"] * 8)) == [400] * 5 + [429] * 3
    refused = _run(client().post("/login", content=b"right"))
    assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 61
    assert _run(_codes(client("5.6.7.8"), [b"right"])) == [200]
    clock = time.monotonic
    monkeypatch.setattr(guard.time, "monotonic", lambda: clock() + 61)
    assert _run(_codes(client(), [b"right", b"wrong"])) == [200, 400]


def test_a_login_that_succeeds_begins_anew(client):
    bodies = ([b"wrong"] * 4 + [b"right"]) * 3
    assert _run(_codes(client(), bodies)) == ([400] * 4 + [200]) * 3


def test_bodies_that_are_no_uploads_are_capped(client):
    big = b"x" * (guard.MAX_BODY + 1)
    assert _run(client().post("/gradio_api/queue/join", content=big)).status_code == 413
    assert _run(client().post("/gradio_api/queue/join", content=big[:-1])).json() == {"size": guard.MAX_BODY}
    assert _run(client().post("/gradio_api/upload", content=big)).json() == {"size": len(big)}


def test_the_oldest_uploads_go(tmp_path):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "1.png").write_bytes(b"x" * 500)
    cache = Cache(tmp_path, files=10, size=1_000)
    for number in range(100):
        path = tmp_path / f"{number:03}" / "upload.png"
        path.parent.mkdir()
        path.write_bytes(b"x" * 300)
        os.utime(path, (number, number))
        cache.sweep()
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.png")) <= 1_500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["097", "098", "099", "examples"]
    small = Cache(tmp_path / "097", files=0)
    assert small.kept and small.sweep() is None and (tmp_path / "097" / "upload.png").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no login"), ("# x\n", "holds no login"), ("anna\n", "line 1 is not NAME:PASSWORD"),
     ("a:b\n:c\n", "line 2 is not")],
)  # fmt: skip
def test_bad_login_files(tmp_path, text, message):
    path = tmp_path / "logins"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(MmdoraError, match=message):
        read_logins(path)


def test_logins(tmp_path):
    path = tmp_path / "logins"
    path.write_text("# people\nanna:a:b c\n\nbert:x\n")
    path.chmod(0o600)
    assert read_logins(path) == [("anna", "a:b c"), ("bert", "x")]
    path.chmod(0o644)
    with pytest.raises(MmdoraError, match="chmod 600"):
        read_logins(path)
