"""Evaluation by generation: ask every question of a set, compare the answers, keep them on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from mmdora.data.images import open_image
from mmdora.data.records import Records, write_records
from mmdora.data.turns import answer_text, prompt_messages
from mmdora.errors import MmdoraError
from mmdora.evaluate.metrics import Scores, answer_type, exact_match, question_text, tally
from mmdora.predict import Prompt, generate

AHEAD = 16  # batches whose images are in memory together; longer means batches of more even length


def evaluate(
    model: Any,
    processor: Any,
    records: Records | list[dict[str, Any]],
    images_root: Path | str,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    out: Path | str | None = None,
    progress: bool = False,
) -> Scores:
    """Answer the last question of every record greedily and score by exact match.

    Args:
        out: folder for `predictions.jsonl` (id, question, answer, prediction, correct, type; in the
            order of the records) and `metrics.json`, written last.
        progress: show a bar with the time left.

    Raises:
        MmdoraError: naming the record, for an image that cannot be read.
    """
    if not len(records):
        raise MmdoraError("nothing to evaluate: there are no records")
    rows: list[dict[str, Any]] = []
    begun = time.perf_counter()
    with tqdm(total=len(records), desc="evaluate", unit="q", disable=not progress) as bar:
        for part, prompts in _parts(records, Path(images_root), batch_size * AHEAD):
            answers = generate(
                model, processor, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=bar.update
            )
            rows += [_row(record, text) for record, text in zip(part, answers, strict=True)]
    scores = tally((row["type"], row["correct"]) for row in rows)
    if out is not None:
        _write(Path(out), rows, scores, time.perf_counter() - begun)
    return scores


def read_predictions(folder: Path | str) -> list[dict[str, Any]]:
    """The rows of `predictions.jsonl` in `folder`."""
    with (Path(folder) / "predictions.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _parts(
    records: Records | list[dict[str, Any]], root: Path, size: int
) -> Iterator[tuple[list[dict[str, Any]], list[Prompt]]]:
    """The records in slices; within one, each image is opened once."""
    for start in range(0, len(records), size):
        part = [records[i] for i in range(start, min(start + size, len(records)))]
        opened: dict[str, Image.Image] = {}
        prompts = []
        for record in part:
            try:
                opened |= {name: open_image(name, root) for name in record["images"] if name not in opened}
            except MmdoraError as error:
                raise MmdoraError(f"record {record['id']}: {error}") from None
            prompts.append(Prompt(prompt_messages(record), [opened[name] for name in record["images"]]))
        yield part, prompts


def _row(record: dict[str, Any], prediction: str) -> dict[str, Any]:
    answer = answer_text(record)
    return {
        "id": record["id"],
        "question": question_text(record),
        "answer": answer,
        "prediction": prediction,
        "correct": exact_match(prediction, answer),
        "type": answer_type(record),
    }


def _write(out: Path, rows: list[dict[str, Any]], scores: Scores, seconds: float) -> None:
    write_records(out / "predictions.jsonl", rows)
    metrics = scores.to_dict() | {"seconds": round(seconds, 2), "questions_per_s": round(len(rows) / seconds, 1)}
    partial = out / "metrics.json.partial"
    partial.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    partial.replace(out / "metrics.json")
