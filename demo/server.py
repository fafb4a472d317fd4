"""Serves the page, with logins and a folder for uploads, until a signal ends it."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradio import themes
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from mmdora.data_prep.easy_vqa import samples
from mmdora.demo.app import QUEUE, Page
from mmdora.demo.cards import CSS, JS
from mmdora.demo.columns import load_columns, parse_specs
from mmdora.demo.compare import MAX_UPLOAD
from mmdora.demo.guard import Guard, read_logins
from mmdora.demo.inside import Inside
from mmdora.demo.votes import Votes
from mmdora.errors import MmdoraError

THEME = themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    radius_size="lg",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
).set(  # Gradio's own colours have too little contrast for WCAG AA.
    color_accent="*primary_600",  # page.css has the colour for dark mode.
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
)

# On a phone Gradio hides the first link of the footer but leaves its dot, which this hides. `css` does not reach there.
FOOTER = "<style>@media (max-width: 640px) { footer .divider { display: none !important; } }</style>"


def serve(
    specs: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth_file: Path | None = None,
    insecure: bool = False,
    share: bool = False,
    queue: int = QUEUE,
    dtype: str = "fp32",
    device: str | None = None,
    shared_base: bool = False,
    votes: Path | None = None,
    results: Path | None = None,
    examples: Sequence[tuple[Path, str]] | None = None,
) -> None:
    """Load the models and serve the page until SIGINT or SIGTERM.

    Args:
        specs: NAME=MODEL for each column.
        host: address to listen at.
        port: port to listen at.
        auth_file: file with NAME:PASSWORD on each line; without a login visitors only see the login page.
        insecure: whether to serve to other machines without logins.
        share: whether to serve under a public address too, through Gradio's tunnel.
        queue: most questions that wait or are answered.
        dtype: dtype of the weights, as for `load`.
        device: device for the models; by default the GPU if there is one.
        shared_base: whether to keep one base in memory for all adapters on it.
        votes: file that votes of blind comparisons are appended to.
        results: folder with runs and evaluations for "Look inside".
        examples: pictures and questions to choose from; by default some of the easy-VQA test split.

    Raises:
        MmdoraError: if a model cannot be loaded, the port is in use, or other machines could reach the page without
            logins.
    """
    logins = read_logins(auth_file) if auth_file else None
    if not (logins or insecure):
        where = "--share" if share else None if _is_loopback(host) else f"--host {host}"
        if where:
            raise MmdoraError(f"{where}: other machines can reach the page; add --auth-file FILE, or --insecure")
    named = parse_specs(specs)
    tally = Votes(list(named), votes)
    inside = Inside(named, results)
    columns = load_columns(specs, dtype=dtype, device=device, shared_base=shared_base)
    with upload_folder():
        page = Page(columns, samples() if examples is None else examples, tally, inside, queue=queue)
        over = threading.Event()
        before = {name: signal.signal(name, lambda *_: over.set()) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            launch(page, host, port, logins=logins, share=share)
            urls = " and ".join(filter(None, (page.blocks.local_url, page.blocks.share_url)))
            print(f"mmdora: {', '.join(named)} at {urls} (Ctrl-C ends)", flush=True)
            over.wait()
        finally:
            page.blocks.close(verbose=False)
            for name, handler in before.items():
                signal.signal(name, handler)


def launch(page: Page, host: str, port: int, *, logins: Any = None, share: bool = False) -> None:
    """Start serving in a thread.

    Raises:
        MmdoraError: if the port is in use, or the host is no address of this machine.
    """
    try:
        page.blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=logins,
            quiet=True,
            prevent_thread_lock=True,
            max_threads=page.line.capacity + 16,
            # For each tab or API call Gradio keeps 76 KiB, in which nothing is ours. If it forgets one, it needs 7 ms
            # to make it anew.
            state_session_capacity=page.line.capacity + 16,
            max_file_size=MAX_UPLOAD,
            theme=THEME,
            css=CSS,
            head=FOOTER,
            js=JS,
            footer_links=["api", "settings"],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            app_kwargs={"middleware": [Middleware(Guard, uploads=Path(get_upload_folder()))]},
        )
    except (OSError, OverflowError) as error:
        raise MmdoraError(f"port {port} on {host} cannot be used ({error}); choose another with --port") from None


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Give a folder of this server alone for uploads, which is removed afterwards."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    folder = tempfile.mkdtemp(prefix="mmdora-page-", dir=before)
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield Path(folder)
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
