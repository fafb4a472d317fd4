"""Serves the page, with logins and a folder for uploads, until a signal ends it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from gradio import themes
from gradio.utils import get_upload_folder

from mmdora.demo.access import Access
from mmdora.demo.app import QUEUE, Page
from mmdora.demo.cards import CSS, JS
from mmdora.demo.columns import load_columns, parse_specs
from mmdora.demo.guard import Guard
from mmdora.demo.hosts import Allowed, Hosts
from mmdora.demo.inside import Inside
from mmdora.demo.logins import Logins, read_logins
from mmdora.demo.pictures import MAX_UPLOAD
from mmdora.demo.question_sets import examples_of, question_sets
from mmdora.demo.upload_cache import UploadCache
from mmdora.demo.votes import Votes
from mmdora.errors import MmdoraError
from mmdora.models.locate import SHIPPED

LOCAL = Access()
TRUSTED = "FORWARDED_ALLOW_IPS"
"""The variable by which uvicorn is told whose X-Forwarded headers to believe: by default those of this machine. Here it
is told nobody's, because `Hosts` reads them; Gradio leaves no other way to tell it."""
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

# Behind the only link of the footer Gradio leaves a dot, which this hides. `css` does not reach there.
FOOTER = "<style>footer .divider { display: none !important; }</style>"


def serve(
    specs: Sequence[str],
    access: Access = LOCAL,
    *,
    queue: int = QUEUE,
    dtype: str | None = None,
    quantize: str | None = None,
    device: str | None = None,
    shared_base: bool = False,
    votes: Path | None = None,
    results: Path | None = None,
    examples: Path | None = None,
    sessions: Path | None = None,
) -> None:
    """Load the models and serve the page until SIGINT or SIGTERM.

    Args:
        specs: NAME=MODEL for each column; none for the bundled base and its shipped adapters on one base.
        access: who may reach the page, and at which addresses.
        queue: most questions that wait or are answered.
        dtype: dtype of the weights, as for `load`; None for each checkpoint's own.
        quantize: as for `load`.
        device: device for the models; by default the GPU if there is one.
        shared_base: whether to keep one base in memory for all adapters on it.
        votes: file that votes of blind comparisons are appended to.
        results: folder with runs and evaluations for "Look inside".
        examples: records, or a folder of `mmdora prep`, whose questions are the examples and the first set; by default
            what the models' runs held out, or the easy-VQA test split.
        sessions: folder that conversations are kept in; by default they end with the page.

    Raises:
        MmdoraError: if a model cannot be loaded, the port is in use, or other machines could reach the page without
            logins.
    """
    allowed, logins = admission(access)  # Loading the models takes long; what is wrong here is told before.
    shared_base = shared_base or not specs
    specs = specs or ("base=tiny-llava", *(f"{name}={folder}" for name, folder in SHIPPED.items()))
    named = parse_specs(specs)
    tally = Votes(list(named), votes)
    inside = Inside(named, results)
    sets = question_sets(examples, inside.locations.values())
    columns = load_columns(specs, dtype=dtype, quantize=quantize, device=device, shared_base=shared_base)
    with upload_folder():
        page = Page(columns, examples_of(sets[0].rows), tally, inside, queue=queue, sets=sets, sessions=sessions)
        over = threading.Event()
        before = {name: signal.signal(name, lambda *_: over.set()) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            launch(page, access, allowed, logins)
            urls = " and ".join(filter(None, (page.blocks.local_url, page.blocks.share_url)))
            print(f"mmdora: {', '.join(named)} at {urls} (Ctrl-C ends)", flush=True)
            over.wait()
        finally:
            page.blocks.close(verbose=False)
            for name, handler in before.items():
                signal.signal(name, handler)


def admission(access: Access) -> tuple[Allowed, Logins | None]:
    """What the page answers to, and its logins; None if everyone is let in.

    Raises:
        MmdoraError: if other machines could reach the page without logins, the file of logins cannot be used, or a name
            or proxy is none.
    """
    access.check()
    logins = Logins(read_logins(access.auth_file)) if access.auth_file else None
    return Allowed.parse(access.host, access.allow_host, access.proxy, access.framed_by), logins


def launch(page: Page, access: Access, allowed: Allowed, logins: Logins | None) -> None:
    """Start serving in a thread.

    Raises:
        MmdoraError: if the port is in use, or the host is no address of this machine.
    """
    cache = UploadCache(Path(get_upload_folder()))

    @asynccontextmanager
    async def protected(app: Any) -> AsyncIterator[None]:
        # Gradio puts its own middleware around any that it is given, and would answer other origins before ours. Here
        # all of it is in place, and no connection is accepted yet.
        app.middleware_stack = Hosts(Guard(app.middleware_stack, cache), allowed)
        yield

    address = access.host.strip("[]")
    try:
        with environment(TRUSTED, ""):
            page.blocks.launch(
                server_name=f"[{address}]" if ":" in address else address,  # Gradio makes a URL of it.
                server_port=access.port,
                share=access.share,
                auth=logins and logins.check,
                quiet=True,
                prevent_thread_lock=True,
                max_threads=page.line.capacity + 16,
                # For each tab or API call Gradio keeps 76 KiB, in which nothing is ours. If it forgets one, it needs
                # 7 ms to make it anew.
                state_session_capacity=page.line.capacity + 16,
                max_file_size=MAX_UPLOAD,
                theme=THEME,
                css=CSS,
                head=FOOTER,
                js=JS,
                footer_links=["api"],
                run_history=False,
                ssr_mode=False,
                enable_monitoring=False,
                app_kwargs={"lifespan": protected, "exception_handlers": {RequestValidationError: _malformed}},
            )
    except (OSError, OverflowError) as error:
        raise MmdoraError(
            f"port {access.port} on {access.host} cannot be used ({error}); choose another with --port"
        ) from None
    allowed.share = urlsplit(page.blocks.share_url or "").hostname


def _malformed(request: Request, error: Exception) -> PlainTextResponse:
    """Refuse a body of a wrong form. FastAPI's own answer repeats the body, and fails if that holds NaN."""
    return PlainTextResponse("the body of the request has another form than this address takes", status_code=422)


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Give a folder of this server alone for uploads, which is removed afterwards."""
    folder = tempfile.mkdtemp(prefix="mmdora-page-", dir=os.environ.get("GRADIO_TEMP_DIR"))
    try:
        with environment("GRADIO_TEMP_DIR", folder):
            yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
