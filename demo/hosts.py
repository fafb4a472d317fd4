"""Admits only requests that are meant for this page: by host name and origin. Its answers carry security headers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse

from mmdora.errors import MmdoraError

# Gradio's page has inline scripts, compiles the functions of `js=` at run time, and shows pictures from data and blob
# URLs. It needs nothing from any other host.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""The policy of uploaded files: a visitor's HTML or SVG must not run scripts as this page."""
UNFRAMED = b"x-frame-options"
"""The header that forbids every frame. It knows no list of sites, so it is left out where some may frame the page."""
HEADERS = {
    UNFRAMED: b"DENY",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}
SECURE = {"http": "https", "ws": "wss"}
HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE)

visitor: ContextVar[str] = ContextVar("visitor")
"""The address of the visitor whose request is being answered."""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass
class Allowed:
    """What the page answers to.

    Attributes:
        names: host names, in lower case, beside the loopback's.
        proxies: networks of the proxies whose X-Forwarded headers are believed.
        anywhere: whether the page listens at every address of the machine; each is then a name of the page.
        frames: origins of the sites that may show the page in a frame.
        share: host name under which Gradio's tunnel serves the page; None without a tunnel.
    """

    names: frozenset[str] = frozenset()
    proxies: tuple[Network, ...] = ()
    anywhere: bool = False
    frames: tuple[str, ...] = ()
    share: str | None = None

    @classmethod
    def parse(cls, host: str, names: Sequence[str], proxies: Sequence[str], frames: Sequence[str] = ()) -> Allowed:
        """Read the values of `--host`, `--allow-host`, `--proxy` and `--framed-by`.

        Raises:
            MmdoraError: if a name is no host name, a proxy is neither an address nor a network, or a site that may
                frame the page is no origin.
        """
        for name in names:
            if not (match := HOST.fullmatch(name)) or match["port"]:
                raise MmdoraError(f"--allow-host {name}: expected a host name without port, such as page.example.org")
        networks = []
        for proxy in proxies:
            try:
                networks.append(ip_network(proxy))
            except ValueError:
                raise MmdoraError(f"--proxy {proxy}: expected an address, or a network as 10.0.0.0/24") from None
        for origin in frames:
            scheme, _, site = origin.partition("://")
            if scheme not in ("http", "https") or not HOST.fullmatch(site):
                raise MmdoraError(f"--framed-by {origin}: expected an origin, such as https://huggingface.co")
        own = _address(host)
        known = frozenset(map(_plain, (host, *names)))
        return cls(known, tuple(networks), own is not None and own.is_unspecified, tuple(frames))

    def host(self, name: str, here: str) -> bool:
        """Whether a request for this host name, which came in at the address `here`, is for this page."""
        address = _address(name)
        return (
            name in ("localhost", self.share)
            or name in self.names
            or (address is not None and (address.is_loopback or (self.anywhere and address == _address(here))))
        )

    def proxy(self, address: str) -> bool:
        known = _address(address)
        return known is not None and any(known in network for network in self.proxies)


class Hosts:
    """ASGI middleware that refuses requests for other hosts or from other origins, and hides forwarded headers.

    X-Forwarded-For, -Host and -Proto of a configured proxy become the request's own address, host and scheme. No
    forwarded header reaches the application, which would believe it from anyone.

    Args:
        app: the application that gets the requests that are let in.
        allowed: what the page answers to.
    """

    def __init__(self, app: Any, allowed: Allowed):
        self.app, self.allowed = app, allowed

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        scope, hosts = self._direct(scope)
        path, frames = scope["path"], self.allowed.frames

        async def secured(message: Any) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                message = {**message, "headers": _secured(message.get("headers", ()), path, frames)}
            await send(message)

        status, problem = self._problem(scope, hosts)
        if problem and scope["type"] == "websocket":
            await receive()  # The protocol wants the handshake read before it is refused.
            return await send({"type": "websocket.close", "code": 1008, "reason": problem})
        if problem:
            return await PlainTextResponse(problem, status)(scope, receive, secured)
        visitor.set(scope["client"][0])
        await self.app(scope, receive, secured)

    def _direct(self, scope: Any) -> tuple[Any, list[str]]:
        """The request as it would be without proxies, and the values of its Host header."""
        peer, _ = scope.get("client") or ("", 0)
        given = [(key.lower(), value) for key, value in scope["headers"]]
        hidden = (b"forwarded", b"x-gradio-server", b"x-real-ip")
        headers = [(k, v) for k, v in given if not k.startswith(b"x-forwarded-") and k not in hidden]
        scheme: str = scope["scheme"]
        if self.allowed.proxy(peer):
            if proto := _last(given, b"x-forwarded-proto"):
                secure = proto.lower() in ("https", "wss")
                scheme = SECURE.get(scheme, scheme) if secure else scheme
            if host := _last(given, b"x-forwarded-host"):
                headers = [(k, v) for k, v in headers if k != b"host"] + [(b"host", host.encode("latin-1"))]
            peer = self._client(peer, _values(given, b"x-forwarded-for"))
        hosts = [value.decode("latin-1") for key, value in headers if key == b"host"]
        if self.allowed.share and hosts and _name(hosts[0]) == self.allowed.share:
            scheme = SECURE.get(scheme, scheme)  # The tunnel's public end speaks HTTPS only.
        return {**scope, "client": (peer, 0), "headers": headers, "scheme": scheme}, hosts

    def _client(self, peer: str, forwarded: list[str]) -> str:
        """The nearest address that is no configured proxy: each proxy appends the address that it was asked by."""
        for text in reversed(forwarded):
            if not self.allowed.proxy(peer) or (address := _address(text)) is None:
                break
            peer = str(address)
        return peer

    def _problem(self, scope: Any, hosts: list[str]) -> tuple[int, str]:
        """Status and reason of a refusal; 0 and no text if the request is let in."""
        here = (scope.get("server") or ("",))[0]
        if len(hosts) != 1 or not self.allowed.host(_name(hosts[0]), here):
            return 400, "The page does not answer to this host name; its operator can allow it with --allow-host."
        if not scope["path"].isprintable():
            return 400, "The address holds characters that no file of the page has."
        headers = dict(scope["headers"])
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site", b"none")
        if origin is not None and not _same_origin(origin.decode("latin-1"), scope["scheme"], hosts[0]):
            return 403, "Requests from other origins are refused."
        if site not in (b"same-origin", b"none"):
            # Which site frames the page is the browser's to check, by `frame-ancestors`.
            whole = (b"document", b"iframe") if self.allowed.frames else (b"document",)
            opened = headers.get(b"sec-fetch-mode") == b"navigate" and headers.get(b"sec-fetch-dest") in whole
            if scope.get("method") != "GET" or not opened or scope["path"].rstrip("/").endswith("/logout"):
                return 403, "Requests from other sites are refused; a link may open the page."
        return 0, ""


def _secured(given: Any, path: str, frames: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer with ours. Gradio's permissions for other origins go, since there are none."""
    framing = " ".join(frames) or "'none'"
    page = f"{POLICY}; frame-ancestors {framing}"
    ours = HEADERS | {b"content-security-policy": (FILE_POLICY if "/file" in path else page).encode()}
    kept = [(k, v) for k, v in given if k.lower() not in ours and not k.lower().startswith(b"access-control-")]
    return kept + [(k, v) for k, v in ours.items() if k != UNFRAMED or not frames or "/file" in path]


def _same_origin(origin: str, scheme: str, host: str) -> bool:
    """Whether an Origin header names this host and port. A proxy that is not configured may hide that it is HTTPS."""
    try:
        parts = urlsplit(origin)
        secure = scheme in ("https", "wss")
        return parts.scheme in (("https",) if secure else ("http", "https")) and _netloc(parts.netloc) == _netloc(host)
    except ValueError:
        return False


def _netloc(text: str) -> str:
    return text.lower().removesuffix(":80").removesuffix(":443")


def _name(host: str) -> str:
    """The plain name of a Host header; empty if it is none."""
    match = HOST.fullmatch(host)
    return _plain(match["name"]) if match else ""


def _plain(name: str) -> str:
    """A host name in one spelling: lower case, without the brackets of IPv6 and the dot of a rooted name."""
    address = _address(name)
    return name.lower().rstrip(".") if address is None else str(address)


def _address(text: str) -> Address | None:
    """The IP address in a text such as 10.0.0.2, [::1] or 10.0.0.2:8080; None if there is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _values(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [item.strip() for key, value in headers if key == name for item in value.decode("latin-1").split(",")]


def _last(headers: list[tuple[bytes, bytes]], name: bytes) -> str:
    """The value that the nearest proxy wrote, which is the last one."""
    return next(reversed(_values(headers, name)), "")
