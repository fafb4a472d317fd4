"""Fixtures that write small files in the official formats of datasets."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmdora.records.record import Record
from mmdora.records.turns import answer_text


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Writes a picture below `images/`, in a given format, whatever its name ends with."""

    def draw(name: str, kind: str = "JPEG", size: tuple[int, int] = (8, 6)) -> Path:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (len(name) * 7 % 256, 40, 90)).save(path, kind)
        return path

    return draw


@pytest.fixture
def official(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file as JSON or, with `lines`, a list as JSON Lines."""

    def write(name: str, content: Any, *, lines: bool = False) -> Path:
        path = tmp_path / name
        text = "".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def records_of() -> Callable[[Path], list[Record]]:
    return read


@pytest.fixture
def full_marks() -> Callable[[str, Iterable[Record]], bool]:
    """Tells whether a task's scorer finds all it needs in the records, and gives their own answers the full mark."""
    from mmdora.evaluate.scoring.scorers import score_rows

    def score(task: str, records: Iterable[Record]) -> bool:
        rows = []
        for record in records:
            said = answer_text(record)
            fields = {key: record[key] for key in ("id", "images", "meta")}
            rows += [fields | {"answer": said, "prediction": said}] if said else []
        return len(rows) > 0 and score_rows(task, rows).overall.value == 1.0

    return score


@pytest.fixture
def question_of() -> Callable[[Any], str]:
    return lambda record: record["messages"][0]["content"][-1]["text"]


@pytest.fixture
def answer_of() -> Callable[[Any], str | None]:
    return lambda record: "".join(part["text"] for part in record["messages"][-1]["content"]) or None
