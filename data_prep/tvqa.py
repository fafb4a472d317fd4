"""TVQA (Lei et al., 2018): multiple choice of five about clips of TV shows, with features for frames.

JSON Lines: `{qid, q, a0 … a4, answer_idx, ts: "76.01-84.2", vid_name, show_name}`; test has no `answer_idx`.
Features: `VID_NAME.npz` (VALUE's release: one row every 1.5 s) below `--features`; their path goes into
`meta.features`. Subtitles (VALUE's tv_subtitles.jsonl) go into `meta.subtitles`. Result:
`{qid: index}`.
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

NAME = "tvqa"
LICENCE = "CC BY-NC-SA 4.0 (annotations)"
SOURCE = (
    "https://github.com/jayleicn/TVQA data/README.md; VALUE-Leaderboard/DataRelease DATA.md, EvaluationTools README.md"
)
UNVERIFIED = ("the names inside VALUE's feature archives, taken to be VID_NAME.npz with the array features",)


def prepare(out: Path, *, inputs: VideoInputs) -> dict[str, int]:
    """TVQA with a feature file for each clip.

    Example: `mmdora prep tvqa --in tvqa_val.jsonl --features tv/clip-vit --out data/tvqa`

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
        [value[f"a{number}"] for number in range(5)],
        value.get("answer_idx"),
        qid=value["qid"],
        vid_name=value["vid_name"],
        ts=value.get("ts"),  # "nan-nan" where nobody marked the moment
        subtitles=subtitles,
        type=value.get("show_name"),
    ) | {"features": names_of(value["vid_name"])}


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """`{qid: index}`, what VALUE's evaluation takes."""
    return write_json_object(path, {str(m["qid"]): index for m, index in chosen_answers(records, predictions)})
