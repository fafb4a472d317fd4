"""TVC (Lei et al., 2020): captions of moments in clips of TV shows, with features for frames.

JSON Lines: `{vid_name, clip_id, duration, ts: [start, end], descs: [{desc, desc_id, type}]}`; test has no
`descs`. To train, every caption is a record of its own; elsewhere a clip is one, its first caption the answer
and all of them in `meta.references`. Features: `VID_NAME.npz` below `--features`, into `meta.features`;
subtitles (VALUE's tv_subtitles.jsonl) into `meta.subtitles`. Result: JSON Lines `{vid_name, clip_id, ts,
descs: [{desc}]}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from mmdora.prepare.features import names_of
from mmdora.prepare.inputs import VideoInputs
from mmdora.prepare.joins import with_subtitles
from mmdora.prepare.read import Row
from mmdora.prepare.record import captioned
from mmdora.prepare.results import answered, write_jsonl
from mmdora.prepare.run import run
from mmdora.prepare.writer import split_of
from mmdora.records.record import Record

NAME = "tvc"
LICENCE = "CC BY-NC-SA 4.0 (annotations)"
SOURCE = (
    "https://github.com/jayleicn/TVCaption standalone_eval/README.md (result); VALUE-Leaderboard/DataRelease DATA.md"
)
UNVERIFIED = ("the names inside VALUE's feature archives, taken to be VID_NAME.npz with the array features",)

PROMPT = "Describe what happens in this moment of the video."


def prepare(out: Path, *, inputs: VideoInputs) -> dict[str, int]:
    """TVC with a feature file for each clip.

    Example: `mmdora prep tvc --in tvc_val_release.jsonl --features tv/clip-vit --out data/tvc`

    Parameters
    ----------
    out
        Folder for a file per split, dataset_card.json and report.html.
    """
    return run(out, __name__, inputs, partial(with_subtitles, subtitles=inputs.subtitles), records)


def records(row: Row) -> Iterator[Record]:
    value, subtitles = row.value
    captions = [(caption["desc_id"], caption["desc"]) for caption in value.get("descs", [])]
    for record in captioned(
        value["clip_id"],
        [],
        PROMPT,
        captions,
        split_of(row.file),
        clip_id=value["clip_id"],
        vid_name=value["vid_name"],
        ts=value.get("ts"),
        subtitles=subtitles,
    ):
        yield record | {"features": names_of(value["vid_name"])}


def write_results(records: Iterable[Record], predictions: Mapping[str, str], path: Path) -> Path:
    """JSON Lines of `{vid_name, clip_id, ts, descs: [{desc}]}`, what VALUE's evaluation takes."""
    rows = (
        {"vid_name": m["vid_name"], "clip_id": m["clip_id"], "ts": m.get("ts"), "descs": [{"desc": text}]}
        for m, text in answered(records, predictions)
    )
    return write_jsonl(path, rows)
