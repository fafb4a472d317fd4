"""The page's widgets and their wiring; what they show comes from `compare`."""

from __future__ import annotations

import ipaddress
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr
from gradio.utils import get_upload_folder
from gradio_client.utils import is_http_url_like

from mmdora.demo.cards import CSS, NOTE, TITLE, answers_html
from mmdora.demo.compare import (
    MAX_QUESTION,
    MAX_TOKENS,
    MAX_UPLOAD,
    Answer,
    Column,
    Settings,
    answer,
    check_question,
    load_columns,
    read_image,
)
from mmdora.demo.compare import examples as easy_vqa_examples
from mmdora.errors import MmdoraError

QUEUE = 64  # questions waiting or running; one more is told that the queue is full
THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    radius_size="lg",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
)


def build(columns: Sequence[Column], examples: Sequence[tuple[Path, str]]) -> gr.Blocks:
    """The page for these models; `examples` are pictures with a question each."""
    kinds = [column.kind for column in columns]
    idle = answers_html([Answer(column.name) for column in columns], kinds)
    stops: dict[str, threading.Event] = {}  # of the question that a browser session waits for

    def buttons(busy: bool) -> tuple[Any, Any]:
        return gr.update(interactive=not busy), gr.update(interactive=busy)

    def begin(request: gr.Request) -> tuple[Any, Any]:
        stops[str(request.session_hash)] = threading.Event()
        return buttons(busy=True)

    def show(
        image: Any, question: Any, tokens: Any, temperature: Any, top_p: Any, seed: Any, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        html, problem = idle, None
        try:
            stop = stops.get(str(request.session_hash))
            for states in _compare(columns, image, question, (tokens, temperature, top_p, seed), stop):
                html = answers_html(states, kinds)
                yield html, *buttons(busy=True)
        except MmdoraError as error:
            problem = gr.Error(str(error), print_exception=False)
        finally:
            leave(request)
        yield html, *buttons(busy=False)
        if problem:
            raise problem

    def halt(request: gr.Request) -> None:
        if stop := stops.get(str(request.session_hash)):
            stop.set()

    def leave(request: gr.Request) -> None:
        halt(request)
        stops.pop(str(request.session_hash), None)

    def reset(request: gr.Request) -> tuple[Any, ...]:
        leave(request)
        return None, "", idle, *buttons(busy=False)

    def compare(
        image: dict[str, Any], question: str, max_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Iterator[list[dict[str, Any]]]:
        """Every model's answer to a question about an image.

        Streams a list with one object for each model, again and again while they answer: name,
        status (waiting, running, done, stopped, failed), text, tokens, first_token_s, tokens_per_s
        and error. The last list has the whole answers.
        """
        try:
            for states in _compare(columns, image, question, (max_tokens, temperature, top_p, seed)):
                yield [state.to_dict() for state in states]
        except MmdoraError as error:
            raise gr.Error(str(error), print_exception=False) from None

    with gr.Blocks(title="mmdora", analytics_enabled=False) as page:
        gr.HTML(TITLE, js_on_load=None, elem_classes="page-html")
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                image = _uploads_only(
                    gr.Image(
                        sources=["upload", "webcam", "clipboard"],
                        type="filepath",
                        label="Picture",
                        height=405,
                        buttons=["fullscreen"],
                        elem_classes="picture",
                        alt_text="The picture that the question is about",
                    )
                )
            with gr.Column(scale=3, min_width=280):
                question = gr.Textbox(
                    label="Question",
                    placeholder="What do you want to know about the picture? Enter sends.",
                    lines=1,
                    max_lines=4,
                    max_length=MAX_QUESTION,
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", min_width=90)
                    stop = gr.Button("Stop", interactive=False, min_width=90)
                    clear = gr.Button("Clear", min_width=90)
                settings = _settings()
                if examples:
                    rows = [[str(path), text] for path, text in examples]
                    with gr.Column(elem_classes="examples"):
                        gr.Examples(rows, inputs=[image, question], api_visibility="private")
        answers = gr.HTML(idle, js_on_load=None, elem_classes="page-html")
        gr.HTML(NOTE, js_on_load=None, elem_classes="page-html")

        inputs = [image, question, *settings]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asked = gr.on([question.submit, ask.click], begin, None, [ask, stop], queue=False, **quiet)
        # raw values (preprocess=False): Pillow must not touch an upload before its size is checked
        shown = asked.then(show, inputs, [answers, ask, stop], preprocess=False, concurrency_id="models", **quiet)
        stop.click(halt, None, None, queue=False, **quiet)
        clear.click(reset, None, [image, question, answers, ask, stop], cancels=[shown], queue=False, **quiet)
        page.unload(leave)

        gr.Button(visible=False).click(
            compare,
            inputs,
            gr.JSON(visible=False, label="answers"),
            preprocess=False,
            concurrency_id="models",
            api_name="compare",
        )
    return page.queue(max_size=QUEUE, default_concurrency_limit=1, api_open=False)


def serve(
    specs: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    examples: Sequence[tuple[Path, str]] | None = None,
) -> None:
    """Load the models and serve the page until SIGINT or SIGTERM.

    Args:
        specs: NAME=MODEL for each column.
        examples: pictures and questions to choose from; default some of the easy-VQA test split.

    Raises:
        MmdoraError: a model that cannot be loaded, a port in use, or a host other than this machine.
    """
    if not _is_loopback(host):
        raise MmdoraError(f"--host {host}: the page has no login, so it is served to this machine only (127.0.0.1)")
    columns = load_columns(specs)
    page = build(columns, easy_vqa_examples() if examples is None else examples)
    over = threading.Event()
    before = {name: signal.signal(name, lambda *_: over.set()) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        _launch(page, host, port)
        print(f"mmdora: {', '.join(column.name for column in columns)} at {page.local_url} (Ctrl-C ends)", flush=True)
        over.wait()
    finally:
        page.close(verbose=False)
        for name, handler in before.items():
            signal.signal(name, handler)


def _launch(page: gr.Blocks, host: str, port: int) -> None:
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            theme=THEME,
            css=CSS,
            footer_links=["api", "settings"],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
        )
    except OSError as error:
        raise MmdoraError(f"port {port} on {host} cannot be used ({error}); choose another with --port") from None


def _uploads_only(image: gr.Image) -> gr.Image:
    """Gradio would fetch a URL that an API caller gives as the picture; this server makes no requests."""
    move = image.async_move_resource_to_block_cache

    async def move_file(path: Any) -> str | None:
        if is_http_url_like(str(path)):
            raise gr.Error("URLs are not fetched; upload the picture.", print_exception=False)
        return await move(path)

    image.async_move_resource_to_block_cache = move_file
    return image


def _settings() -> list[gr.components.Component]:
    default = Settings()
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            tokens = gr.Slider(1, MAX_TOKENS, default.max_tokens, step=1, label="Max tokens", min_width=200)
            temperature = gr.Slider(
                0, 2, default.temperature, step=0.05, label="Temperature (0: greedy)", min_width=200
            )
        with gr.Row():
            top_p = gr.Slider(0.05, 1, default.top_p, step=0.05, label="Top-p", min_width=200)
            seed = gr.Number(
                default.seed, precision=0, minimum=0, label="Seed (the same for every model)", min_width=200
            )
    return [tokens, temperature, top_p, seed]


def _compare(
    columns: Sequence[Column],
    image: dict[str, Any] | None,
    question: Any,
    settings: tuple[Any, ...],
    stop: threading.Event | None = None,
) -> Iterator[tuple[Answer, ...]]:
    """Check what came over the wire, then ask."""
    if not image or not image.get("path"):
        raise MmdoraError("Choose a picture first.")
    question = check_question(question)
    path = Path(image["path"]).resolve()
    # Gradio checks this only for callers who mark the path as a file of theirs
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise MmdoraError("The picture is no upload to this page.")
    picture = read_image(path)
    yield from answer(columns, picture, question, Settings(*settings), stop)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
