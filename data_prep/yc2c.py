"""YC2C: captions of the segments of YouCook2 (Zhou et al., 2018), as VALUE released them, given as features.

Rows, records and result file are those of TVC (see `tvc`); a clip is a segment of a cooking video. Features are
`VID_NAME.npz` below `--features`; subtitles are VALUE's yc2_subtitles.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmdora.data_prep.tvc import moment_captions, write_results
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import VideoInputs
from mmdora.prepare.joins import with_subtitles
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft

PROMPT = "Describe the step of the recipe that the video shows."


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    yield from moment_captions(row, PROMPT)


DATASET = Dataset(
    name="yc2c",
    summary="YC2C: captions of the steps of cooking videos",
    details="Give VALUE's release of it; there is a feature file for each segment.",
    example="--in yc2c_val_release.jsonl --features yc2/clip-vit --out data/yc2c",
    origin=Origin(
        licence="CC BY-NC-SA 4.0 (annotations)",
        source=(
            "https://github.com/VALUE-Leaderboard DataRelease/DATA.md, vid_mapping/README.md; EvaluationTools/README.md"
        ),
        unverified=(
            "the rows: documented as formatted like TVC's, no file was at hand; ts and duration may be missing",
            "the names inside VALUE's feature archives, taken to be VID_NAME.npz with the array features",
        ),
    ),
    files=OfficialFiles(VideoInputs, with_subtitles, records),
    results=ResultFile("results.jsonl", write_results),
)
