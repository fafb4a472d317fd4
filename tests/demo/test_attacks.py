"""The attack list: each form is tried against the page as it is served, on a port."""

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from demo_page import png, serving

API = "gradio_api/"
EVIL = "evil.example"


@pytest.fixture(scope="module")
def page():
    with serving() as served:
        yield served


# Logins


def test_a_forwarded_address_frees_nobody():
    with serving(logins={"anna": "secret", "bert": "hidden"}) as page:
        tries = [page.login("anna", str(n), headers={"x-forwarded-for": f"9.9.9.{n}"}) for n in range(20)]
        assert tries == [400] * 5 + [429] * 15
        for headers in ({}, {"x-forwarded-for": "8.8.8.8"}, {"forwarded": "for=8.8.8.8"}, {"x-real-ip": "8.8.8.8"}):
            assert page.login("anna", "secret", headers=headers) == 429, headers
        assert page.login(" anna ", "secret") == 429, "the same account with spaces around it"
        assert page.login("bert", "hidden") == 200, "someone else behind the same address"
        answer = page.post("login", data={"username": "anna", "password": "x"})
        assert 1 <= int(answer.headers["retry-after"]) <= 61


def test_behind_a_configured_proxy_addresses_are_told_apart():
    with serving(logins={"anna": "secret"}, proxy=("127.0.0.1",)) as page:
        attacker = {"x-forwarded-for": "1.1.1.1, 9.9.9.9"}
        assert [page.login("anna", str(n), headers=attacker) for n in range(7)] == [400] * 5 + [429] * 2
        for spoofed in ("2.2.2.2, 9.9.9.9", "127.0.0.1, 9.9.9.9", "9.9.9.9"):
            assert page.login("anna", "secret", headers={"x-forwarded-for": spoofed}) == 429
        assert page.login("anna", "secret", headers={"x-forwarded-for": "9.9.9.9, 5.5.5.5"}) == 200


def test_many_logins_at_once_are_counted():
    with serving(logins={"anna": "secret"}) as page, ThreadPoolExecutor(10) as pool:
        codes = list(pool.map(lambda n: page.login("anna", str(n)), range(20)))
    assert sorted(codes) == [400] * 5 + [429] * 15


# Hosts and origins


@pytest.mark.parametrize(
    "path", ["", "config", "login", API + "upload", API + "queue/join", API + "queue/data", API + "call/compare",
             API + "heartbeat/x", API + "info", "theme.css", API + "startup-events"],
)  # fmt: skip
def test_other_hosts_and_origins_get_nothing(page, path):
    """As a page of another host would ask whose name now resolves to this machine, or one of another origin."""
    own = page.netloc
    for method in ("GET", "POST", "OPTIONS", "HEAD", "PUT"):
        for headers in (
            {"host": EVIL},
            {"host": EVIL, "origin": f"http://{EVIL}"},
            {"host": f"{EVIL}:{own.partition(':')[2]}"},
            {"host": own, "origin": f"http://{EVIL}"},
            {"host": own, "origin": "null"},
            {"host": own, "origin": "http://localhost:3000"},
            {"host": own, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
            {"host": own, "origin": f"http://{EVIL}", "access-control-request-method": "POST"},
            {"host": own, "x-forwarded-host": EVIL, "origin": f"http://{EVIL}"},
        ):
            answer = page.http.request(method, page.url + path, headers=headers)
            assert answer.status_code in (400, 403), (method, headers)
            assert EVIL not in answer.text and EVIL not in str(answer.headers)
            assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_cross_origin_upload_leaves_no_file(page):
    before = page.stored()
    for headers in ({"host": EVIL}, {"origin": f"http://{EVIL}"}, {"sec-fetch-site": "same-site"}):
        assert page.upload(png(), headers=headers).status_code in (400, 403)
    assert page.stored() == before


def test_a_forwarded_host_is_not_reflected(page):
    for headers in (
        {"x-forwarded-host": EVIL}, {"x-gradio-server": f"http://{EVIL}"}, {"forwarded": f"host={EVIL}"},
        {"x-forwarded-host": EVIL, "x-forwarded-proto": "https", "x-forwarded-port": "1"},
    ):  # fmt: skip
        for path in ("", "config", API + "info", API + "openapi.json", "theme.css", "manifest.json", "logout"):
            answer = page.get(path, headers=headers)
            assert answer.status_code < 400 and EVIL not in answer.text and EVIL not in str(answer.headers), path


def test_every_answer_carries_the_policy_and_the_page_works(page):
    answers = [page.get(), page.get("nothing"), page.get(headers={"host": EVIL})]
    answers += [page.post("login"), page.upload(png(), headers={"origin": page.url.rstrip("/")})]
    for answer in answers:
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY" and answer.headers["x-content-type-options"] == "nosniff"
    assert [answer.status_code for answer in answers[-1:]] == [200]
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert page.get(headers=link).status_code == 200


def test_uploaded_pages_run_nothing(page):
    for name, content in (("a.html", b"<script>alert(1)</script>"), ("a.svg", b"<svg onload='alert(1)'/>")):
        (path,) = page.post(API + "upload", files={"files": (name, content)}).json()
        answer = page.get(f"{API}file={path}")
        assert answer.status_code == 200 and "sandbox" in answer.headers["content-security-policy"]
        assert answer.headers["content-disposition"].startswith("attachment")


def test_an_allowed_host_and_the_tunnels():
    with serving(allow_host=("page.example",), proxy=("127.0.0.1",)) as page:
        headers = {"host": "page.example", "origin": "https://page.example", "x-forwarded-proto": "https"}
        assert page.upload(png(), headers=headers).status_code == 200
        assert '"root":"https://page.example"' in page.get(headers=headers).text
        rewritten = {"x-forwarded-host": "page.example", "origin": "https://page.example"}
        assert page.upload(png(), headers=rewritten).status_code == 200
        assert page.upload(png(), headers={**rewritten, "x-forwarded-host": EVIL}).status_code == 400


def test_the_tunnels_host_is_allowed(monkeypatch):
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda **_: "https://abc.gradio.live")
    with serving(share=True) as page:
        headers = {"host": "abc.gradio.live", "origin": "https://abc.gradio.live"}
        assert page.upload(png(), headers=headers).status_code == 200
        assert '"root":"https://abc.gradio.live"' in page.get(headers=headers).text
        assert page.upload(png(), headers={"host": "other.gradio.live"}).status_code == 400


def test_requests_that_no_library_sends(page):
    own, port = page.netloc.encode(), page.netloc.encode().partition(b":")[2]
    for head in (
        b"GET / HTTP/1.0\r\n", b"GET / HTTP/1.1\r\nhost: evil.example\r\n",
        b"GET / HTTP/1.1\r\nhost: " + own + b"\r\nhost: evil.example\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost:" + port + b"@evil.example\r\n",
        b"GET / HTTP/1.1\r\nhost: \r\n", b"GET / HTTP/1.1\r\nhost: localhost, evil.example\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nhost: evil.example\r\n",
    ):  # fmt: skip
        assert " 400 " in page.raw(head + b"\r\n"), head
    upgrade = b"\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: "
    upgrade += b"A" * 22 + b"==\r\n\r\n"
    told = page.raw(
        b"GET /gradio_api/queue/join HTTP/1.1\r\nhost: " + own + b"\r\norigin: http://evil.example" + upgrade
    )
    assert " 403 " in told or " 400 " in told


# Files and pictures


@pytest.mark.parametrize("route", ["gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "svelte/",
                                   "gradio_api/proxy=", "gradio_api/custom_component/x/client/component/"])  # fmt: skip
def test_no_other_file_is_served(page, route):
    name = "mmdora-page-x/../../../etc/passwd"
    for path in ("/etc/passwd", "//etc/passwd", "../" * 12 + "etc/passwd", "..%2f" * 12 + "etc%2fpasswd",
                 "%2Fetc%2Fpasswd",
                 "..%252f" * 12 + "etc%252fpasswd", "..\\" * 12 + "etc\\passwd", "/proc/self/environ", "pyproject.toml",
                 "file:///etc/passwd", f"{page.folder}/../{name}", f"{page.folder}%2f..%2f..%2fetc%2fpasswd",
                 "http://127.0.0.1:1/x", "https://example.org/a.png", "/etc/passwd%00.png", ".env", "~/.bashrc",
                 "/dev/zero"):  # fmt: skip
        answer = page.get(f"{route}{path}")
        assert answer.status_code in (400, 403, 404, 405, 500) and b"root:" not in answer.content, path


def ask(page, picture):
    """Ask through the API; gives the last event."""
    data = [picture, "what is it?", 2, 0, 1, 0, "", None]
    event = page.post(API + "call/compare", json={"data": data}).json()["event_id"]
    return page.get(f"{API}call/compare/{event}").text


def sent(page, content, name="a.png"):
    (path,) = page.post(API + "upload", files={"files": (name, content)}).json()
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_names_that_lead_elsewhere(page):
    for name in (
        "../../evil.png",
        "/etc/evil.png",
        "..\\..\\evil.png",
        "a" * 5_000 + ".png",
        "\x00.png",
        ".",
        "..",
        "con",
    ):
        answer = page.post(API + "upload", files={"files": (name, png())})
        assert answer.status_code in (200, 400, 413)
        for path in answer.json() if answer.status_code == 200 else []:
            assert os.path.realpath(path).startswith(f"{page.folder}/")


def test_pictures_that_are_bombs(page):
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    def header(side):
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0")

    huge = header(60_000) + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + chunk(b"IEND", b"")
    text = header(8) + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 10**8)) + chunk(b"IEND", b"")
    for content in (huge, text, header(8), b"", b"GIF89a" + b"\xff" * 500, b"<svg/>", b"%!PS\n", b"\0" * 10**6):
        told = ask(page, sent(page, content))
        assert "event: error" in told and "Traceback" not in told and str(page.folder) not in told
    assert "red" in ask(page, sent(page, png()))


@pytest.mark.parametrize(
    "data",
    [None, [], [None] * 8, {}, "x", [[[[]]]] * 8, [{"path": 5}, "q", 2, 0, 1, 0, "", None],
     [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "q", 2, 0, 1, 0, "", None],
     [{"url": "http://169.254.169.254/", "meta": {"_type": "gradio.FileData"}}, "q", 2, 0, 1, 0, "", None]],
)  # fmt: skip
def test_calls_of_another_form(page, data):
    answer = page.post(API + "call/compare", json={"data": data})
    if answer.status_code == 200:
        told = page.get(f"{API}call/compare/{answer.json()['event_id']}").text
        assert "event: error" in told and "Traceback" not in told
    else:
        assert answer.status_code in (400, 422)


def test_json_that_is_too_deep_or_no_json(page):
    for body in (b"[" * 90_000, b'{"data":' + b"[" * 50_000 + b"]" * 50_000 + b"}", b"\xff\xfe", b"", b"{",
                 json.dumps({"data": [10**400]}).encode(), b'{"data": NaN}', b"[NaN]"):  # fmt: skip
        answer = page.post(API + "call/compare", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400, 422)
    assert page.get().status_code == 200
