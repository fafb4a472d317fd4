"""TVC (Lei et al., 2020): captions of moments in clips of TV shows, given as features of frames.

The files are JSON Lines of `{vid_name, clip_id, duration, ts: [start, end], descs: [{desc, desc_id, type}]}`; those of
the test split have no `descs`. In the split train every caption is a record of its own. Elsewhere a clip is one record,
with its first caption as the answer and all of them in `meta.references`. Features are `VID_NAME.npz` below
`--features`; their path goes into `meta.features`. Subtitles (VALUE's tv_subtitles.jsonl) go into `meta.subtitles`. The
result file is JSON Lines of `{vid_name, clip_id, ts, descs: [{desc}]}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin, ResultFile
from mmdora.prepare.inputs import VideoInputs
from mmdora.prepare.joins import with_subtitles
from mmdora.prepare.read import OfficialRow, split_of
from mmdora.prepare.record import RecordDraft, captioned, feature_files
from mmdora.prepare.results import answered, write_jsonl
from mmdora.records.record import RecordFacts

PROMPT = "Describe what happens in this moment of the video."


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    yield from moment_captions(row, PROMPT)


def moment_captions(row: OfficialRow, prompt: str) -> Iterator[RecordDraft]:
    """Yield records of the captions of a moment of a clip, in the format of TVC and VALUE's other captioning tasks."""
    value, subtitles = row.value
    captions = [(caption["desc_id"], caption["desc"]) for caption in value.get("descs", [])]
    for record in captioned(
        value["clip_id"],
        [],
        prompt,
        captions,
        split_of(row.file),
        clip_id=value["clip_id"],
        vid_name=value["vid_name"],
        ts=value.get("ts"),
        subtitles=subtitles,
    ):
        yield {**record, "features": feature_files(value["vid_name"])}


def write_results(records: Iterable[RecordFacts], predictions: Mapping[str, str], path: Path) -> Path:
    """Write JSON Lines of `{vid_name, clip_id, ts, descs: [{desc}]}`, which VALUE's evaluation reads."""
    rows = (
        {"vid_name": m["vid_name"], "clip_id": m["clip_id"], "ts": m.get("ts"), "descs": [{"desc": text}]}
        for m, text in answered(records, predictions)
    )
    return write_jsonl(path, rows)


DATASET = Dataset(
    name="tvc",
    summary="TVC: captions of moments in clips of TV shows",
    details="Give its JSON Lines; there is a feature file for each clip.",
    example="--in tvc_val_release.jsonl --features tv/clip-vit --out data/tvc",
    origin=Origin(
        licence="CC BY-NC-SA 4.0 (annotations)",
        source=(
            "https://github.com/jayleicn/TVCaption standalone_eval/README.md (result); "
            "VALUE-Leaderboard/DataRelease DATA.md"
        ),
        unverified=("the names inside VALUE's feature archives, taken to be VID_NAME.npz with the array features",),
    ),
    files=OfficialFiles(VideoInputs, with_subtitles, records),
    results=ResultFile("results.jsonl", write_results),
)
