"""One image, one question, one to four models: their answers as they grow. Knows no Gradio."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCard
from PIL import Image

from mmdora.data.images import decode
from mmdora.errors import MmdoraError
from mmdora.injectors import plan_of
from mmdora.models.load import bundled, load
from mmdora.predict import ask, stream

MAX_COLUMNS = 4
MAX_QUESTION = 8_000  # characters
MAX_TOKENS = 1_024
MAX_UPLOAD = 10 * 10**6  # bytes
REFRESH = 0.05  # seconds between two states of a growing answer
METHODS = {"lora": "LoRA", "dora": "DoRA", "magnitude": "magnitude", "full": "full fine-tuning"}

_device = threading.Lock()  # models on one device answer in turn, so that timings are fair


@dataclass(frozen=True)
class Column:
    """One model on the page: its name there, and what it is."""

    name: str
    model: Any
    processor: Any
    kind: str


@dataclass(frozen=True)
class Settings:
    """How answers are generated, the same for every model.

    Raises:
        MmdoraError: naming the value that is out of range or of the wrong type.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _within("max tokens", self.max_tokens, 1, MAX_TOKENS, whole=True)
        _within("temperature", self.temperature, 0, 2)
        _within("top-p", self.top_p, 0.01, 1)
        _within("seed", self.seed, 0, 2**53, whole=True)


Status = Literal["idle", "waiting", "running", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Answer:
    """The state of one column; timings leave out waiting for the other columns."""

    name: str
    status: Status = "idle"
    text: str = ""
    tokens: int = 0
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse_specs(specs: Sequence[str]) -> dict[str, str]:
    """`NAME=MODEL` texts as a dict in their order.

    Raises:
        MmdoraError: none or more than four, not NAME=MODEL, a name twice, or a folder that is not there.
    """
    if not 1 <= len(specs) <= MAX_COLUMNS:
        raise MmdoraError(f"the page shows 1 to {MAX_COLUMNS} models; found {len(specs)} (give NAME=MODEL for each)")
    named: dict[str, str] = {}
    for spec in specs:
        name, joined, path = (part.strip() for part in spec.partition("="))
        if not (joined and name and path):
            raise MmdoraError(f"{spec!r}: expected NAME=MODEL, for example base=tiny-llava")
        if name in named:
            raise MmdoraError(f"{spec!r}: the name {name!r} is there twice; each column needs its own")
        folder = Path(path).expanduser()
        # a hub id is NAME or OWNER/NAME; whatever cannot be one must be there
        hub = (
            path.count("/") < 2
            and not path.startswith((".", "/", "~"))
            and not ("/" in path and folder.parent.is_dir())
        )
        if not hub and not folder.exists():
            raise MmdoraError(f"{spec!r}: there is no folder {path}")
        named[name] = path if hub else str(folder)
    return named


def load_columns(specs: Sequence[str]) -> list[Column]:
    """Open every `NAME=MODEL`, on the GPU if there is one, and let each answer once so that all are warm.

    Raises:
        MmdoraError: for specs that `parse_specs` refuses, and models that cannot be loaded.
    """
    columns = []
    for name, path in parse_specs(specs).items():
        try:
            model, processor = load(path, device="cuda" if torch.cuda.is_available() else None)
        except MmdoraError as error:
            raise MmdoraError(f"column {name}: {error}") from None
        list(stream(model, processor, ask("?", Image.new("RGB", (64, 64))), max_new_tokens=2))
        columns.append(Column(name, model, processor, describe(model, path)))
    return columns


def describe(model: Any, path: str) -> str:
    """What a model is, in a line: base, adapter method, or what its model card says was merged."""
    size = sum(parameter.numel() for parameter in model.parameters())
    if plan := plan_of(model):
        methods = sorted({entry.method for entry in plan.entries} | ({"full"} if plan.full else set()))
        share = f"{_short(plan.trainable)} of {_short(size)} trained"
        return f"{_methods(methods)} on {Path(model.name_or_path).name}, {share}"
    merged = [tag for tag in _card_tags(Path(path)) if tag in METHODS]
    kind = "base" if path in bundled() else f"{_methods(merged)}, merged" if merged else "checkpoint"
    return f"{kind}, {_short(size)} parameters"


def read_image(path: Path) -> Image.Image:
    """An uploaded file as RGB; the size is checked before any pixel is decoded.

    Raises:
        MmdoraError: naming what is wrong with the file, never where the server keeps it.
    """
    if path.stat().st_size > MAX_UPLOAD:
        raise MmdoraError(f"image: larger than {MAX_UPLOAD // 10**6} MB")
    return decode(path.read_bytes(), "upload")


def check_question(question: Any) -> str:
    """The question without white space around it, if it is one and not too long."""
    if not isinstance(question, str) or not question.strip():
        raise MmdoraError("Type a question first.")
    if len(question) > MAX_QUESTION:
        raise MmdoraError(f"The question has {len(question):,} characters; the limit is {MAX_QUESTION:,}.")
    return question.strip()


def answer(
    columns: Sequence[Column],
    image: Image.Image,
    question: str,
    settings: Settings,
    stop: threading.Event | None = None,
) -> Generator[tuple[Answer, ...], None, None]:
    """All columns' states, again and again while one model after the other answers.

    A model that fails shows why in its own column; the others still answer. Closing the iterator or
    setting `stop` ends generation at the next token.
    """
    stop = stop or threading.Event()
    prompt = ask(check_question(question), image)
    states = [Answer(column.name, "waiting") for column in columns]
    yield tuple(states)
    with _device:
        for index, column in enumerate(columns):
            for states[index] in _one(column, prompt, settings, stop):
                yield tuple(states)


def _one(column: Column, prompt: Any, settings: Settings, stop: threading.Event) -> Iterator[Answer]:
    state = Answer(column.name, "running")
    if stop.is_set():
        yield replace(state, status="stopped")
        return
    yield state
    shown = 0.0
    try:
        for part in stream(
            column.model,
            column.processor,
            prompt,
            max_new_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            stop=stop,
        ):
            state = replace(state, **asdict(part))
            if time.monotonic() - shown >= REFRESH:
                shown = time.monotonic()
                yield state
        yield replace(state, status="stopped" if stop.is_set() else "done")
    except Exception as error:
        yield replace(state, status="failed", error=_reason(error))


def examples(count: int = 6) -> list[tuple[Path, str]]:
    """Pictures and questions of the easy-VQA test split, no picture or question twice."""
    folder = Path(str(files("easy_vqa"))) / "data" / "test"
    chosen: dict[int, str] = {}
    for question, _, image in json.loads((folder / "questions.json").read_text(encoding="utf-8"))[::7]:
        if len(chosen) < count and image not in chosen and question not in chosen.values():
            chosen[image] = question
    return [(folder / "images" / f"{image}.png", question) for image, question in chosen.items()]


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return "out of memory; ask for fewer tokens or a smaller picture"
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, MmdoraError) else f"{type(error).__name__}: {text}"


def _within(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        kind = "a whole number" if whole else "a number"
        raise MmdoraError(f"{name}: expected {kind} from {low} to {high}, found {value!r:.40}")


def _methods(names: Sequence[str]) -> str:
    return " + ".join(METHODS[name] for name in names)


def _short(count: int) -> str:
    return (
        f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} K"
    )


def _card_tags(folder: Path) -> list[str]:
    try:
        return list(ModelCard.load(folder / "README.md").data.tags or [])
    except (OSError, ValueError):
        return []
