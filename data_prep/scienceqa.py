"""ScienceQA (Lu et al., 2022): school science in multiple choice, about half with a picture.

`problems.json` is an object of pid -> `{question, choices, answer: index, hint, image: name or null, task, grade,
subject, topic, category, skill, lecture, solution, split}`. Images are `SPLIT/PID/image.png` or `PID/image.png` below
the root or below `images/` there. `pid_splits.json` repeats what `split` says (and names the small splits minitrain,
minival and minitest), so it is not needed. The result file is `{results: {pid: index}}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft, choice
from mmdora.prepare.results import chosen_answers, write_json_object
from mmdora.prepare.rows import json_entries
from mmdora.records.record import RecordFacts


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    pid, value = row.value
    names = [f"{value['split']}/{pid}/{value['image']}", f"{pid}/{value['image']}"]
    pictures = [(*names, *(f"images/{name}" for name in names))] if value["image"] else []
    record = choice(
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
    )
    yield {**record, "split": value["split"]}


def write_results(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write `{results: {pid: index}}`, which `evaluate_acc.py` reads."""
    results = {meta["pid"]: index for meta, index in chosen_answers(records, predictions)}
    return write_json_object(path, {"results": results})


DATASET = Dataset(
    name="scienceqa",
    summary="ScienceQA: school science in multiple choice",
    details="Give problems.json; every split that it holds becomes a file.",
    example="--in problems.json --images scienceqa/images --out data/scienceqa",
    origin=Origin(
        licence="CC BY-NC-SA 4.0",
        source="https://github.com/lupantech/ScienceQA tools/evaluate_acc.py; LLaVA scripts/convert_sqa_to_llava.py",
    ),
    files=OfficialFiles(ImageInputs, json_entries, records),
    results=ResultFile("results.json", write_results),
)
