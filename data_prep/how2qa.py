"""How2QA (Li et al., 2020): questions with four choices about clips of instructional videos, given as features.

Rows, records and result file are those of TVQA (see `tvqa`), as VALUE released them: JSON Lines of `{qid, q, a0 … a3,
answer_idx, ts, vid_name}`. Features are `VID_NAME.npz` below `--features`; subtitles are VALUE's how2_subtitles.jsonl.
The CSV of How2QA's first release (video, [start:end], three wrong answers, question, right answer; no header, no ids)
is not read.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmdora.data_prep.tvqa import clip_question, write_results
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import VideoInputs
from mmdora.prepare.joins import with_subtitles
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    yield clip_question(row, 4)


DATASET = Dataset(
    name="how2qa",
    summary="How2QA: multiple choice about instructional videos",
    details="Give VALUE's release of it; there is a feature file for each clip.",
    example="--in how2qa_val_release.jsonl --features how2/clip-vit --out data/how2qa",
    origin=Origin(
        licence="CC BY-NC-SA 4.0 (annotations)",
        source=(
            "https://github.com/VALUE-Leaderboard/DataRelease DATA.md; EvaluationTools "
            "scoring_program/evaluate_how2qa.py"
        ),
        unverified=("the names inside VALUE's feature archives, taken to be VID_NAME.npz with the array features",),
    ),
    files=OfficialFiles(VideoInputs, with_subtitles, records),
    results=ResultFile("results.json", write_results),
)
