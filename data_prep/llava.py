"""LLaVA-Instruct (Liu et al., 2023): conversations about images (150k and mix665k), and other files in this layout.

A file is a JSON list of `{id, image?, conversations: [{from: human|gpt, value}]}`; `<image>` in a value marks the place
of the image. A row may have a `video` in its place, marked by `<video>` or, as in LLaVA-Video-178K, by `<image>`. Rows
without either are about text alone. mix665k has several conversations about one COCO image under the same id, so
repeated ids are counted and not refused. Image paths start at one root, as in `coco/train2017/000000033471.jpg`.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin
from mmdora.prepare.inputs import OwnInputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft
from mmdora.prepare.rows import by_ending
from mmdora.records.llava_json import to_record


def records(row: OfficialRow) -> Iterator[RecordDraft]:
    record = to_record(row.value, f"row {row.number}")
    yield {**record, "meta": {"id": row.value.get("id", row.number)}}


DATASET = Dataset(
    name="llava",
    summary="LLaVA-Instruct, and your own files in its layout",
    details="Give llava_instruct_150k.json, llava_v1_5_mix665k.json, or your own file in their layout.",
    example="--in llava_v1_5_mix665k.json --images DIR --out data/llava",
    origin=Origin(
        licence="CC BY 4.0, OpenAI's terms (answers by GPT); images under their own",
        source="https://github.com/haotian-liu/LLaVA docs/Data.md, docs/Finetune_Custom_Data.md, llava/train/train.py",
        owned=(
            "llava_instruct_*.json",
            "llava_v1_5_mix665k.json",
            "conversation_58k.json",
            "complex_reasoning_77k.json",
            "detail_23k.json",
        ),
    ),
    files=OfficialFiles(OwnInputs, by_ending, records, unique_ids=False, split="train"),
)
