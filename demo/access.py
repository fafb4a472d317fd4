"""Who may reach the page, and at which addresses."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from mmdora.errors import MmdoraError


@dataclass(frozen=True)
class Access:
    """The page's addresses, and who is let in.

    Attributes:
        host: Address to listen on; other than this machine only with --auth-file or --insecure.
        port: Port to listen on.
        auth_file: Logins, NAME:PASSWORD a line.
        insecure: Let other machines in without a login.
        share: Serve under a public address, through Gradio's tunnel.
        allow_host: Host name by which browsers may ask for the page, beside localhost and --host; may be repeated.
        proxy: Address or network of a reverse proxy whose X-Forwarded headers are believed; may be repeated.
        framed_by: Origin of a site that may show the page in a frame, as https://huggingface.co does; may be repeated.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    auth_file: Path | None = None
    insecure: bool = False
    share: bool = False
    allow_host: tuple[str, ...] = ()
    proxy: tuple[str, ...] = ()
    framed_by: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse to let other machines in without logins, unless that is wanted.

        Raises:
            MmdoraError: if other machines could reach the page without logins.
        """
        reached = "--share" if self.share else None if _is_loopback(self.host) else f"--host {self.host}"
        if reached and not (self.auth_file or self.insecure):
            raise MmdoraError(f"{reached}: other machines can reach the page; add --auth-file FILE, or --insecure")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
