import asyncio

import pytest

from mmdora.demo.hosts import Allowed, Hosts, visitor
from mmdora.errors import MmdoraError

REFUSED = {400: "host", 403: "origin"}


def ask(
    allowed=None,
    headers=(),
    *,
    peer="9.9.9.9",
    here="192.168.1.5",
    method="GET",
    path="/",
    kind="http",
    given=(),
    **more,
):
    """Send a request through `Hosts`; gives what the application saw (None if it was refused), and the answer."""
    seen, sent = {}, []

    async def app(scope, receive, send):
        seen.update(
            {key.decode(): value.decode() for key, value in scope["headers"]},
            client=visitor.get(), scheme=scope["scheme"],
        )  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": list(given)})

    async def receive():
        return {"type": "websocket.connect" if kind == "websocket" else "http.request"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": kind, "method": method, "path": path, "scheme": "ws" if kind == "websocket" else "http",
        "client": (peer, 1234), "server": (here, 7860), "headers": [(k.encode(), v.encode()) for k, v in headers],
    }  # fmt: skip
    asyncio.run(Hosts(app, allowed or Allowed())(scope, receive, send))
    return (seen or None), sent[0]


def let_in(*args, **more):
    seen, answer = ask(*args, **more)
    assert (seen is None) == (answer.get("status") in REFUSED or answer["type"] == "websocket.close")
    return seen is not None


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:7860", "LOCALHOST:1", "localhost.", "127.0.0.1:7860", "127.8.8.8", "[::1]:7860", "[::1]"],
)
def test_names_of_the_loopback(host):
    assert let_in(headers=[("host", host)])


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example#localhost",
     "localhost@evil.example", "user@localhost", "localhost,evil.example", "localhost/x", "localhost:x", "localhost:",
     "2130706433", "127.1", "0x7f.0.0.1", "[::ffff:1.2.3.4]", "0.0.0.0", "[::]", "", " ", "::1", "192.168.1.5",
     "localhost\x00", "ｌocalhost"],
)  # fmt: skip
def test_other_names_are_refused(host):
    assert not let_in(headers=[("host", host)])
    assert not let_in(headers=[("host", host)], kind="websocket")


def test_exactly_one_host_is_needed():
    assert not let_in(headers=[])
    assert not let_in(headers=[("host", "localhost"), ("host", "evil.example")])


def test_names_that_were_given():
    allowed = Allowed.parse("mybox.lan", ["page.example", "10.0.0.9"], [])
    for host in ("mybox.lan:7860", "page.example", "PAGE.example:443", "10.0.0.9"):
        assert let_in(allowed, [("host", host)]), host
    assert not let_in(allowed, [("host", "sub.page.example")])


@pytest.mark.parametrize(
    ("host", "here"), [("0.0.0.0", "192.168.1.5"), ("::", "2001:db8::5"), ("::", "::ffff:10.0.0.1")]
)
def test_at_all_addresses_the_one_that_was_asked_is_a_name(host, here):
    allowed = Allowed.parse(host, [], [])
    shown = here.removeprefix("::ffff:")
    name = f"[{shown}]" if ":" in shown else shown
    assert let_in(allowed, [("host", f"{name}:7860")], here=here)
    assert not let_in(allowed, [("host", "192.168.1.6")], here=here)
    assert not let_in(allowed, [("host", "evil.example")], here=here)
    assert not let_in(Allowed.parse("192.168.7.7", [], []), [("host", name)], here=here)


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://localhost:3000", "http://localhost", "https://localhost:78600", "null", "",
     "http://127.0.0.1:7860", "file://", "http://localhost:7860.evil.example", "chrome-extension://localhost:7860",
     "http://user@localhost:7860", "http://[", "localhost:7860"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS", "PUT", "DELETE"])
def test_other_origins_are_refused(origin, method):
    headers = [("host", "localhost:7860"), ("origin", origin)]
    assert not let_in(headers=headers, method=method)
    if method == "GET":
        assert not let_in(headers=headers, kind="websocket")


def test_the_own_origin():
    for origin in ("http://localhost:7860", "HTTP://LOCALHOST:7860"):
        assert let_in(headers=[("host", "localhost:7860"), ("origin", origin)], method="POST")
    page = Allowed.parse("127.0.0.1", ["page.example"], ["10.0.0.1"])
    headers = [("host", "page.example"), ("origin", "https://page.example")]
    assert let_in(page, headers, method="POST"), "behind a proxy that is not configured"
    secure = [*headers[:1], ("x-forwarded-proto", "https")]
    assert let_in(page, [*secure, headers[1]], method="POST", peer="10.0.0.1")
    assert not let_in(page, [*secure, ("origin", "http://page.example")], method="POST", peer="10.0.0.1")


def fetched(site, mode="cors", dest="empty", **more):
    fetch = [("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)]
    return let_in(headers=[("host", "localhost:7860"), *fetch], **more)


def test_other_sites_may_only_open_the_page():
    for site in ("same-origin", "none"):
        assert fetched(site, method="POST") and fetched(site)
    for site in ("cross-site", "same-site", "anything"):
        assert fetched(site, "navigate", "document")
        assert not fetched(site, "navigate", "document", method="POST")
        assert not fetched(site, "navigate", "document", path="/logout")
        assert not fetched(site, "navigate", "iframe")
        assert not fetched(site, "no-cors", "image")
        assert not fetched(site, "cors", "empty", path="/gradio_api/queue/data")


def test_a_site_that_is_named_may_frame_the_page():
    allowed, site = Allowed.parse("127.0.0.1", [], [], ["https://huggingface.co"]), ("sec-fetch-site", "cross-site")
    framed = [("host", "localhost"), site, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")]
    assert let_in(allowed, framed) and not let_in(headers=framed)
    assert not let_in(allowed, framed, method="POST") and not let_in(allowed, framed, path="/logout")
    for path, policy in (("/", "; frame-ancestors https://huggingface.co"), ("/gradio_api/file=/x.svg", "sandbox")):
        headers = dict(ask(allowed, framed, path=path)[1]["headers"])
        assert headers[b"content-security-policy"].decode().endswith(policy)
        assert (b"x-frame-options" in headers) == (path != "/")
    for origin in ("huggingface.co", "https://*", "https://a b", "https://a; script-src *", "ftp://a.example"):
        with pytest.raises(MmdoraError, match="expected an origin"):
            Allowed.parse("127.0.0.1", [], [], [origin])


FORWARDED = [
    ("host", "localhost:7860"), ("x-forwarded-for", "1.1.1.1, 2.2.2.2"), ("x-forwarded-host", "page.example"),
    ("x-forwarded-proto", "https"), ("x-gradio-server", "http://evil.example"), ("forwarded", "host=evil.example"),
    ("x-forwarded-prefix", "/evil"), ("x-real-ip", "1.1.1.1"),
]  # fmt: skip


def test_forwarded_headers_of_strangers_reach_nothing():
    for peer in ("127.0.0.1", "9.9.9.9"):
        seen, _ = ask(Allowed.parse("127.0.0.1", ["page.example"], ["10.0.0.1"]), FORWARDED, peer=peer)
        assert seen == {"host": "localhost:7860", "client": peer, "scheme": "http"}


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [("2.2.2.2", "2.2.2.2"), ("1.1.1.1, 2.2.2.2", "2.2.2.2"), ("1.1.1.1, 2.2.2.2, 10.0.0.7", "2.2.2.2"),
     ("2.2.2.2:5555", "2.2.2.2"), ("[2001:db8::1]:443", "2001:db8::1"), ("10.0.0.7", "10.0.0.7"),
     ("1.1.1.1, nonsense", "10.0.0.1"), ("", "10.0.0.1")],
)  # fmt: skip
def test_the_address_is_the_nearest_that_is_no_proxy(forwarded, client):
    allowed = Allowed.parse("127.0.0.1", ["page.example"], ["10.0.0.0/24"])
    headers = [("host", "x"), ("x-forwarded-host", "page.example"), ("x-forwarded-for", forwarded)]
    seen, _ = ask(allowed, headers, peer="10.0.0.1")
    assert seen is not None and seen["client"] == client and seen["host"] == "page.example"


def test_a_proxy_cannot_bring_a_host_that_is_not_allowed():
    allowed = Allowed.parse("127.0.0.1", ["page.example"], ["10.0.0.1"])
    assert not let_in(allowed, [("host", "page.example"), ("x-forwarded-host", "evil.example")], peer="10.0.0.1")
    assert let_in(allowed, [("host", "evil.example"), ("x-forwarded-host", "a, page.example")], peer="10.0.0.1")


def test_the_tunnels_host_is_https():
    allowed = Allowed(share="abc.gradio.live")
    headers = [("host", "abc.gradio.live"), ("x-forwarded-proto", "http")]
    seen, _ = ask(allowed, headers, peer="127.0.0.1")
    assert seen is not None and seen["scheme"] == "https"
    assert let_in(allowed, [*headers, ("origin", "https://abc.gradio.live")], method="POST")
    assert not let_in(allowed, [*headers, ("origin", "http://abc.gradio.live")], method="POST")
    assert not let_in(Allowed(), headers)


def test_answers_carry_the_policy_and_no_permission_for_other_origins():
    given = [(b"Access-Control-Allow-Origin", b"*"), (b"access-control-allow-credentials", b"true"), (b"x", b"y"),
             (b"X-Frame-Options", b"ALLOW")]  # fmt: skip
    for path, start in (("/", "default-src 'self'"), ("/gradio_api/file=/tmp/x.svg", "default-src 'none'")):
        _, answer = ask(headers=[("host", "localhost")], path=path, given=given)
        headers = {key.decode().lower(): value.decode() for key, value in answer["headers"]}
        assert headers.pop("content-security-policy").startswith(start)
        assert headers == {
            "x": "y", "x-frame-options": "DENY", "x-content-type-options": "nosniff",
            "referrer-policy": "same-origin", "cross-origin-resource-policy": "same-origin",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "proxies", "message"),
    [
        *(([name], [], "without port") for name in ("a:1", "http://a", "a b", "", "*")),
        *(([], [proxy], "an address, or a network") for proxy in ("proxy.lan", "*", "10.0.0.1/24")),
    ],
)
def test_names_and_proxies_that_are_none(names, proxies, message):
    with pytest.raises(MmdoraError, match=message):
        Allowed.parse("127.0.0.1", names, proxies)


@pytest.mark.parametrize("path", ["/\x00", "/gradio_api/proxy=\x00", "/a\nb", "/\x1b[31m"])
def test_paths_with_control_characters(path):
    assert not let_in(headers=[("host", "localhost")], path=path)
