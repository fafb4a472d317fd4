"""TVQA (Lei et al., 2018): questions with five choices about clips of TV shows, given as features of frames.

The files are JSON Lines of `{qid, q, a0 … a4, answer_idx, ts: "76.01-84.2", vid_name, show_name}`; those of the test
split have no `answer_idx`. Features are `VID_NAME.npz` below `--features` (in VALUE's release one row every 1.5 s);
their path goes into `meta.features`. Subtitles (VALUE's tv_subtitles.jsonl) go into `meta.subtitles`. The result file
is `{qid: index}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import VideoInputs
from mmdora.prepare.joins import with_subtitles
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft, choice, feature_files
from mmdora.prepare.results import chosen_answers, write_json_object
from mmdora.records.record import RecordFacts


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    yield clip_question(row, 5)


def clip_question(row: OfficialRow, choices: int) -> RecordDraft:
    """Make a record of a multiple-choice question about a clip in TVQA's format, with `choices` choices."""
    value, subtitles = row.value
    record = choice(
        value["qid"],
        [],
        value["q"],
        [value[f"a{number}"] for number in range(choices)],
        value.get("answer_idx"),
        qid=value["qid"],
        vid_name=value["vid_name"],
        ts=value.get("ts"),  # It is "nan-nan" where nobody marked the moment.
        subtitles=subtitles,
        type=value.get("show_name"),
    )
    return {**record, "features": feature_files(str(value["vid_name"]))}


def write_results(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write `{qid: index}`, which VALUE's evaluation reads."""
    return write_json_object(path, {str(m["qid"]): index for m, index in chosen_answers(records, predictions)})


DATASET = Dataset(
    name="tvqa",
    summary="TVQA: multiple choice about clips of TV shows",
    details="Give its JSON Lines; there is a feature file for each clip.",
    example="--in tvqa_val.jsonl --features tv/clip-vit --out data/tvqa",
    origin=Origin(
        licence="CC BY-NC-SA 4.0 (annotations)",
        source=(
            "https://github.com/jayleicn/TVQA data/README.md; VALUE-Leaderboard/DataRelease DATA.md, "
            "EvaluationTools README.md"
        ),
        unverified=("the names inside VALUE's feature archives, taken to be VID_NAME.npz with the array features",),
    ),
    files=OfficialFiles(VideoInputs, with_subtitles, records),
    results=ResultFile("results.json", write_results),
)
