"""How2QA (Li et al., 2020): multiple choice of four about clips of instructional videos, with features.

VALUE's JSON Lines, formatted as TVQA's: `{qid, q, a0 … a3, answer_idx, ts, vid_name}`. Features:
`VID_NAME.npz` below `--features`, into `meta.features`; subtitles (VALUE's how2_subtitles.jsonl) into
`meta.subtitles`. The first release's CSV (video, [start:end], three wrong answers, question, right
answer; no header, no ids) is another file and is not read. Result: `{qid: index}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from mmdora.prepare.features import names_of
from mmdora.prepare.inputs import VideoInputs
from mmdora.prepare.joins import with_subtitles
from mmdora.prepare.read import Row
from mmdora.prepare.record import choice
from mmdora.prepare.results import chosen_answers, write_json_object
from mmdora.prepare.run import run
from mmdora.records.record import Record

NAME = "how2qa"
LICENCE = "CC BY-NC-SA 4.0 (annotations)"
SOURCE = "https://github.com/VALUE-Leaderboard/DataRelease DATA.md; EvaluationTools scoring_program/evaluate_how2qa.py"
UNVERIFIED = ("the names inside VALUE's feature archives, taken to be VID_NAME.npz with the array features",)


def prepare(out: Path, *, inputs: VideoInputs) -> dict[str, int]:
    """How2QA as VALUE released it, with a feature file for each clip.

    Example: `mmdora prep how2qa --in how2qa_val_release.jsonl --features how2/clip-vit --out data/how2qa`

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    return run(out, __name__, inputs, partial(with_subtitles, subtitles=inputs.subtitles), records)


def records(row: Row) -> Iterator[Record]:
    value, subtitles = row.value
    yield choice(
        value["qid"],
        [],
        value["q"],
        [value[f"a{number}"] for number in range(4)],
        value.get("answer_idx"),
        qid=value["qid"],
        vid_name=value["vid_name"],
        ts=value.get("ts"),
        subtitles=subtitles,
    ) | {"features": names_of(str(value["vid_name"]))}


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """`{qid: index}`, what VALUE's evaluation takes."""
    return write_json_object(path, {str(m["qid"]): index for m, index in chosen_answers(records, predictions)})
