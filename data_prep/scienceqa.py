"""ScienceQA (Lu et al., 2022): school science in multiple choice, about half with a picture.

`problems.json`: an object of pid -> `{question, choices, answer: index, hint, image: name or null, task,
grade, subject, topic, category, skill, lecture, solution, split}`. Images: `SPLIT/PID/image.png` or
`PID/image.png` below the root, also below `images/`. `pid_splits.json` says what `split` says
(and the small splits minitrain, minival, minitest) and is not needed. Result: `{results: {pid: index}}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import Reader, Row
from mmdora.prepare.record import choice
from mmdora.prepare.results import chosen_answers, write_json_object
from mmdora.prepare.run import run
from mmdora.records.record import Record

NAME = "scienceqa"
LICENCE = "CC BY-NC-SA 4.0"
SOURCE = "https://github.com/lupantech/ScienceQA tools/evaluate_acc.py; LLaVA scripts/convert_sqa_to_llava.py"
UNVERIFIED = ()


def prepare(out: Path, *, inputs: ImageInputs) -> dict[str, int]:
    """ScienceQA's problems.json; every split it holds becomes a file.

    Example: `mmdora prep scienceqa --in problems.json --images scienceqa/images --out data/scienceqa`

    Parameters
    ----------
    out
        Folder for train.jsonl, val.jsonl, test.jsonl, dataset_card.json and report.html.
    """
    return run(out, __name__, inputs, rows, records)


def rows(read: Reader, files: list[Path]) -> Iterator[Row]:
    """(pid, problem)."""
    for path in files:
        yield from read.items(path)


def records(row: Row) -> Iterator[Record]:
    pid, value = row.value
    names = [f"{value['split']}/{pid}/{value['image']}", f"{pid}/{value['image']}"]
    pictures = [(*names, *(f"images/{name}" for name in names))] if value["image"] else []
    yield choice(
        pid,
        pictures,
        value["question"],
        value["choices"],
        value["answer"],
        context=value["hint"],
        pid=pid,
        hint=value["hint"],
        **{field: value.get(field) for field in ("subject", "grade", "topic", "category", "lecture", "solution")},
        type="image" if pictures else "text" if value["hint"] else "no context",
    ) | {"split": value["split"]}


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """`{results: {pid: index}}`, what `evaluate_acc.py` takes."""
    results = {meta["pid"]: index for meta, index in chosen_answers(records, predictions)}
    return write_json_object(path, {"results": results})
