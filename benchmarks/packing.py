"""Measures padding and speed of packed rows beside padded ones, at lengths like those of LLaVA's instruction data.

    python benchmarks/packing.py            # table, results/packing.{json,md}; some minutes
    python benchmarks/packing.py --quick    # fewer rows and rounds, in under a minute; nothing is written

The lengths are drawn at random to resemble LLaVA-1.5's 665 thousand rows: 94% of the rows have a picture of 576 tokens
and log-normal text (median 120, at most 1,400 tokens), the others are text alone (median 500). All ways train a LLaVA
with few layers (random weights, DoRA in the language model) on the same rows once: in batches in any order, in batches
of similar length (the default), and in packed rows of 2,048 tokens (fewer on a CPU, see `SCALE`). Batches are made
beforehand. Times are process CPU time (on CUDA wall time, synchronised). The ways take turns, and ratios are medians
over rounds of the ratio within a round. `in any order, again` is one way measured twice, which shows the noise. First,
the training's own check makes sure that packed rows have the same loss as single ones.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # Threads that spin while they wait would count as CPU time.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from harness import show, write
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import mmdora
from mmdora.batches.packing import PackedCollator, Packs
from mmdora.batches.sampler import GroupedSampler
from mmdora.batches.survey import filling
from mmdora.families.template import IGNORE
from mmdora.train.packing import check_packing

SCALE = 1 if torch.cuda.is_available() else 4
"""Divisor of all lengths and of the model's width. It is 4 on a CPU; as both shrink, attention has the same share of
the time as in the 7B model."""
CAPACITY, VISUAL, WIDTH = 2048 // SCALE, 576 // SCALE, 4096 // SCALE
"""Tokens of a packed row, tokens of a picture, width of the language model."""
PIXELS = 14 * round(VISUAL**0.5)  # Side of a picture in pixels; a patch has a side of 14 and gives one token.
WORDS, BATCH, PACKED_BATCH = 2048, 8, 4
"""Size of the vocabulary, rows of a batch, packed rows of a batch."""


def lengths_of(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw [rows] int32 tokens of each row, and [rows] bool whether it has a picture."""
    draw = np.random.default_rng(seed)
    pictured = draw.random(rows) < 0.94
    text = draw.lognormal(np.log(np.where(pictured, 120, 500) / SCALE), 0.8).clip(16 / SCALE, 1400 / SCALE)
    return (text + VISUAL * pictured).astype(np.int32), pictured


class DrawnRows:
    """Stands in for `Rows`, with all that `Packs` and the check need; a record is only its number."""

    records: Any = SimpleNamespace(path="drawn lengths")

    def __init__(self, count: int):
        self.lengths, self.has_image = lengths_of(count)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": int(index)}


class Tokens:
    """Stands in for a `Family`: rows of random words, whose last quarter has labels, and a random picture if any."""

    def __init__(self, rows: DrawnRows):
        self.rows = rows

    def packing_problem(self) -> None:
        return None

    def positions(self, model: Any) -> None:
        return None

    def batch(self, records: list[dict[str, Any]]) -> dict[str, Tensor]:
        chosen = [record["id"] for record in records]
        width, pictures = int(self.rows.lengths[chosen].max()), []
        ids, labels = torch.zeros(len(chosen), width, dtype=torch.long), torch.full((len(chosen), width), IGNORE)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(chosen):
            generator, length = torch.Generator().manual_seed(row), int(self.rows.lengths[row])
            ids[place, :length] = torch.randint(3, WORDS - 1, (length,), generator=generator)
            text = length - VISUAL * int(self.rows.has_image[row])
            labels[place, length - text // 4 : length] = ids[place, length - text // 4 : length]
            mask[place, :length] = 1
            if self.rows.has_image[row]:
                ids[place, 1 : 1 + VISUAL] = WORDS - 1
                pictures.append(torch.randn(3, PIXELS, PIXELS, generator=generator))
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return batch | ({"pixel_values": torch.stack(pictures)} if pictures else {})


def model_of(device: str) -> Any:
    torch.manual_seed(0)
    vision: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = LlamaConfig(vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=WIDTH * 11 // 4,
                       num_hidden_layers=4 // SCALE, num_attention_heads=WIDTH // 128,
                       num_key_value_heads=WIDTH // 128)  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=PIXELS, patch_size=14),
        text_config=text,
        image_token_index=WORDS - 1,
    )
    with torch.device(device):
        model: Any = LlavaForConditionalGeneration(config)
    mmdora.inject(model, {"language": {"method": "dora", "rank": 16}})
    return model.to(torch.bfloat16 if device == "cuda" else torch.float32).train()


def measure(count: int, rounds: int, device: str) -> list[dict[str, Any]]:
    rows, model = DrawnRows(count), model_of(device)
    packs: Any = Packs(rows, CAPACITY, 0)  # pyright: ignore[reportArgumentType]
    tokens: Any = Tokens(rows)
    collate = PackedCollator(tokens, model)
    check_packing(model, collate, packs)

    def batches(made: Any, lengths: np.ndarray | None, size: int, join: Any) -> tuple[list[dict[str, Any]], float]:
        order = GroupedSampler(len(made), size, 0, lengths, made.has_image).order()
        parts = np.split(order, range(size, len(order), size))
        joined = [join([made[int(i)] for i in part]) for part in parts]
        for batch in joined:
            batch.pop("samples", None)
            if device == "cuda":
                batch.update({k: v.cuda() for k, v in batch.items() if isinstance(v, Tensor)})
                if "pixel_values" in batch:
                    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
        return joined, filling(made.lengths[order], size)

    ways = {
        "in any order": batches(rows, None, BATCH, tokens.batch),
        "grouped by length": batches(rows, rows.lengths, BATCH, tokens.batch),
        "packed": batches(packs, packs.lengths, PACKED_BATCH, collate),
    }
    ways["in any order, again"] = ways["in any order"]
    clock = time.perf_counter if device == "cuda" else time.process_time
    spent: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(ways), len(ways)):
            started, seen = clock(), time.monotonic()
            for batch in ways[name][0]:
                model(**batch).loss.backward()
                model.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()
            spent[name].append(clock() - started)
            wall[name].append(time.monotonic() - seen)
    total, base = int(rows.lengths.sum()), spent["in any order"]
    return [
        {
            "batches": name,
            "padding": f"{share:.1%}",
            "forward passes": len(joined),
            "tokens/s": f"{total / statistics.median(spent[name]):,.0f}",
            "seconds": f"{statistics.median(spent[name]):.1f}",
            "wall": f"{statistics.median(wall[name]):.1f}",
            "times as fast": f"{statistics.median(b / a for a, b in zip(spent[name], base, strict=True)):.2f}",
        }
        for name, (joined, share) in ways.items()
    ]


def padding(count: int) -> list[dict[str, Any]]:
    """The share of padding in an epoch of `count` rows, for several batch sizes."""
    rows = DrawnRows(count)
    packs: Any = Packs(rows, CAPACITY, 0)  # pyright: ignore[reportArgumentType]
    table = []
    for size in (2, 4, 8, 16):
        shares = {"rows of a batch": size}
        for name, made, lengths in (
            ("in any order", rows, None), ("grouped by length", rows, rows.lengths), ("packed", packs, packs.lengths)
        ):  # fmt: skip
            order = GroupedSampler(len(made), size, 0, lengths, made.has_image).order()
            shares[name] = f"{filling(made.lengths[order], size):.1%}"  # pyright: ignore[reportArgumentType]
        table.append(shares)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, nothing written")
    parser.add_argument("--rounds", type=int, default=9, help="epochs of each way (default: 9)")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    count, rounds = (16, 1) if options.quick else (128, options.rounds)
    tables = {
        f"an epoch of {count} rows": measure(count, rounds, device),
        "padding of 100,000 rows": padding(2_000 if options.quick else 100_000),
    }
    if options.quick:
        tables["padding of 2,000 rows"] = tables.pop("padding of 100,000 rows")
    for title, table in tables.items():
        show(title, table)
    if not options.quick:
        notes = f"{rounds} rounds, {torch.get_num_threads()} threads; tokens are those of rows, padding not counted."
        name = "packing" if device == "cpu" else "packing_cuda"
        print(write(name, "python benchmarks/packing.py", tables, notes))


if __name__ == "__main__":
    main()
