"""Rows against the length limit. An image is never cut: a row is shortened by whole turns, dropped, or refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from mmdora.data.images import locate
from mmdora.data.prompt import render
from mmdora.data.records import Record, Records
from mmdora.errors import MmdoraError


@dataclass(frozen=True)
class Rows(Dataset[Record]):
    """The rows of a training set that fit, in the order of the file."""

    records: Records
    index: np.ndarray  # [rows] into records
    messages: np.ndarray  # [rows] how many messages are kept; 0 keeps all
    lengths: np.ndarray  # [rows] tokens, or characters when nothing had to be measured
    has_image: np.ndarray  # [rows] bool
    dropped: int = 0
    shrunk: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Record:
        record = self.records[self.index[index]]
        kept = self.messages[index]
        return record if not kept else record | {"messages": record["messages"][:kept]}


def fit(records: Records, processor: Any, max_length: int | None, policy: str) -> Rows:
    """Choose the rows to train on.

    Args:
        max_length: tokens per row, images included; None measures characters only, for grouping.
        policy: "error", "drop", or "shrink" (leave out turns from the end).

    Raises:
        MmdoraError: for a row over the limit under "error", a row whose first turn alone is over it
            under "shrink", or when nothing is left.
    """
    index, kept, lengths, has_image = [], [], [], []
    dropped = shrunk = 0
    for number, record in enumerate(records):
        messages, length = 0, _characters(record)
        if max_length is not None:
            length = count_tokens(processor, record["messages"], record["images"], records.root)
            if length > max_length:
                if policy == "error":
                    raise MmdoraError(
                        f"{records.path}: record {record['id']} has {length} tokens, over data.max_length {max_length};"
                        " raise it, or set data.too_long to drop or shrink"
                    )
                if policy == "drop":
                    dropped += 1
                    continue
                messages, length = _shrink(record, processor, max_length, records)
                shrunk += 1
        index.append(number)
        kept.append(messages)
        lengths.append(length)
        has_image.append(bool(record["images"]))
    if not index:
        raise MmdoraError(f"{records.path}: no record fits data.max_length {max_length}")
    return Rows(
        records, np.array(index), np.array(kept), np.array(lengths), np.array(has_image, dtype=bool), dropped, shrunk
    )


def count_tokens(processor: Any, messages: list[dict[str, Any]], images: list[str], root: Path) -> int:
    """Tokens of a rendered conversation after its images are expanded; reads image headers only."""
    text = render(processor, messages)
    start = processor.tokenizer.bos_token
    special = not (start and text.startswith(start))
    tokens = len(processor.tokenizer(text, add_special_tokens=special)["input_ids"])
    if not images:
        return tokens
    sizes = []
    for name in images:
        with Image.open(locate(name, root)) as image:
            sizes.append((image.height, image.width))
    expanded = processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens
    return tokens - len(images) + sum(expanded)


def _characters(record: Record) -> int:
    return sum(len(part.get("text", "")) for message in record["messages"] for part in message["content"])


def _shrink(record: Record, processor: Any, max_length: int, records: Records) -> tuple[int, int]:
    messages = record["messages"]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for last in reversed(answers[:-1]):
        head = messages[: last + 1]
        if sum(p["type"] == "image" for m in head for p in m["content"]) != len(record["images"]):
            break
        length = count_tokens(processor, head, record["images"], records.root)
        if length <= max_length:
            return last + 1, length
    raise MmdoraError(
        f"{records.path}: record {record['id']} is over data.max_length {max_length} with its first turn alone"
        " (images are never cut); raise the limit or set data.too_long: drop"
    )
