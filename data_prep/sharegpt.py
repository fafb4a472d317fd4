"""ShareGPT's layout with images: `conversations` (or `messages`), `images`, `system`.

A row is `{conversations: [{from, value}], images: [path, …], system?}` with the speakers human, gpt and system;
`<image>` in a value marks the place of each image. `{role, content}` instead of `{from, value}`, and `image` instead of
`images`, are read too. `videos` is a list of paths likewise, and `<video>` marks the place of each. Rows with tool
calls (observation, function_call) are bad rows.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin
from mmdora.prepare.inputs import OwnInputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft
from mmdora.prepare.rows import by_ending
from mmdora.records.llava_json import to_record
from mmdora.records.media import check_keys


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    value = row.value
    keys = ("id", "conversations", "messages", "system", "images", "image", "videos", "video")
    check_keys(value, keys, ("images", "image"), videos=("videos", "video"))
    turns = [_turn(turn) for turn in value.get("conversations") or value["messages"]]
    if value.get("system"):
        turns.insert(0, {"from": "system", "value": value["system"]})
    name = value.get("id", f"{row.file.stem}-{row.number}")
    images = value.get("images") or value.get("image") or []
    videos = value.get("videos") or value.get("video") or []
    told = {"id": name, "image": images, "video": videos, "conversations": turns}
    record = to_record(told, f"row {row.number}")
    yield {**record, "meta": {"id": name}}


def _turn(turn: dict[str, str]) -> dict[str, str]:
    return turn if "from" in turn else {"from": turn["role"], "value": turn["content"]}


DATASET = Dataset(
    name="sharegpt",
    summary="Conversations with images in ShareGPT's layout",
    details="Give .json, .jsonl or .parquet files, as LLaMA-Factory and others read them.",
    example="--in mllm_demo.json --images DIR --out data/demo",
    origin=Origin(
        licence="that of the data at hand",
        owned=(),
        source="https://github.com/hiyouga/LLaMA-Factory data/README.md (sharegpt and multimodal formats)",
    ),
    files=OfficialFiles(OwnInputs, by_ending, records, unique_ids=False, split="train"),
)
