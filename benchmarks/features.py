"""Measures training steps of VL-BART whose frozen tower runs in each step, or once per image (`data.feature_cache`).

    python benchmarks/features.py            # table, results/features.{json,md}; some minutes
    python benchmarks/features.py --quick    # one step of a narrow tower and BART; nothing is written

The model is bart-base with an open_clip RN101 at 224 px, with random weights and 36 tokens of width 2048 per image.
DoRA of rank 128 is on q_proj and v_proj, and the visual embedding trains, as in the paper's image tasks. Pictures are
drawn scenes as JPEG files of 640 x 480; questions and answers are one line long. A step is the collator (decode and
preprocess, or read features), forward, backward and AdamW. All ways learn the same rows, and take turns in a new order
every round. Times are process CPU time of this process alone, and ratios are medians over rounds of the ratio within a
round. `pixels again` is the way with pixels measured twice, which shows the noise. The losses of all ways are compared.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # Threads that spin while they wait would count as CPU time.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from harness import show, write
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BartTokenizer

import mmdora
from mmdora.adapt.inject import trainable_parameters
from mmdora.data_prep import scenes
from mmdora.families import Family, family_of
from mmdora.models.open_clip.tower import image_processor, tower_config
from mmdora.models.vlbart.config import BART_BASE, VLBartConfig
from mmdora.models.vlbart.feature_cache import FeatureCache
from mmdora.models.vlbart.head import VLBartForConditionalGeneration
from mmdora.models.vlbart.processor import VLBartProcessor
from mmdora.records.reader import read_records, write_records
from mmdora.records.record import qa_record

BATCH, STEPS, GRID = 4, 2, 6  # Rows of a step; steps of a round; side of the grid of tokens, as in the paper.
SIZE = (640, 480)  # Width and height of a picture in pixels: the usual size in COCO.
QUICK = {"d_model": 96, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
"""Settings of BART without dropout: the losses of all ways are then equal, so that they can be compared."""
QUICK_TOWER = {"embed_dim": 32, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 4, "head_width": 16}}


def made(quick: bool) -> tuple[Any, Any]:
    """The adapted model and its processor. Every byte is a token, because a real vocabulary would need a download."""
    torch.manual_seed(0)
    vision = tower_config(QUICK_TOWER, grid=2) if quick else tower_config("RN101", grid=GRID)
    text = BART_BASE | NO_DROPOUT | (QUICK if quick else {})
    config = VLBartConfig(text_config=text, vision_config=vision)
    model = VLBartForConditionalGeneration(config)
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    tokenizer = BartTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])
    processor = VLBartProcessor(image_processor(vision), tokenizer)
    language = {"method": "dora", "rank": 4 if quick else 128, "targets": ["q_proj", "v_proj"]}
    mmdora.inject(model, {"projector": {"method": "full"}, "language": language})
    return model.train(), processor


def drawn(folder: Path, count: int) -> Any:
    """Write and open records with one picture and one question each."""
    rows = []
    for number in range(count):
        things, picture = scenes.scene(random.Random(number))
        picture.resize(SIZE).save(folder / f"{number}.jpg", quality=90)
        pairs = scenes.conversation(random.Random(number), things)[:1]
        rows.append(qa_record(f"s{number}", f"{number}.jpg", pairs))
    write_records(folder / "records.jsonl", rows)
    return read_records(folder / "records.jsonl")


@dataclass(frozen=True)
class Filling:
    """The cost of the cache of features: seconds of CPU time, number of images, and bytes on the disk."""

    cache: FeatureCache
    images: int
    opened: float
    filled: float
    checked: float

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.cache.rows.folder.iterdir())


def fill(model: Any, family: Family, records: Any, folder: Path) -> Filling:
    """Open a cache in `folder`, fill it with the features of all images, and look for them once more."""
    begun = time.process_time()
    cache = FeatureCache.of(model, family, folder)
    opened = time.process_time()
    images = cache.fill(records, batch_size=BATCH)
    filled = time.process_time()
    again = cache.fill(records, batch_size=BATCH)
    checked = time.process_time()
    assert images == len(records) and again == 0
    return Filling(cache, images, opened - begun, filled - opened, checked - filled)


@dataclass(frozen=True)
class Trained:
    """The steps of one way: CPU seconds of collator and model in each step of all rounds, losses of the last round."""

    collator: list[float]
    model: list[float]
    losses: list[float]

    @property
    def step(self) -> list[float]:
        return [a + b for a, b in zip(self.collator, self.model, strict=True)]


def train(model: Any, batches: list[Any], ways: dict[str, Callable[[Any], Any]], rounds: int) -> dict[str, Trained]:
    """Run the steps of all ways in each round, from the same weights; the order of the ways is new in each round."""
    parameters = [parameter for _, parameter, _, _ in trainable_parameters(model)]
    before = [parameter.detach().clone() for parameter in parameters]
    trained = {name: Trained([], [], []) for name in ways}
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(ways), len(ways)):
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
            optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
            trained[name].losses.clear()
            for batch in batches:
                started = time.process_time()
                inputs = ways[name](batch)
                ready = time.process_time()
                loss = model(**inputs).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                trained[name].collator.append(ready - started)
                trained[name].model.append(time.process_time() - ready)
                trained[name].losses.append(loss.item())
    return trained


def measure(folder: Path, rounds: int, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Measure both tables: a step of each way, and the cost and gain of the cache."""
    model, processor = made(quick)
    records = drawn(folder, BATCH * (1 if quick else STEPS))
    batches = [[records[i] for i in range(at, at + BATCH)] for at in range(0, len(records), BATCH)]
    family = family_of(processor)
    filling = fill(model, family, records, folder / "cache")
    pixels = family.batch
    ways = {"pixels": pixels, "cached": partial(pixels, features=filling.cache.features), "pixels again": pixels}
    trained = train(model, batches, ways, rounds)
    apart = max(abs(a - b) / a for a, b in zip(trained["pixels"].losses, trained["cached"].losses, strict=True))
    if apart > 1e-4:
        raise SystemExit(f"the losses with and without the cache differ by {apart:.1e}")
    return {
        f"a step of {BATCH} rows": [step_row(name, way, trained["pixels"]) for name, way in trained.items()],
        f"the cache of {filling.images} images": cache_rows(filling, trained, apart),
    }


def step_row(name: str, way: Trained, pixels: Trained) -> dict[str, str]:
    """A row of the table of steps; `pixels` is the way that the others are compared with."""
    faster = [b / a for a, b in zip(way.step, pixels.step, strict=True)]
    return {
        "a step reads": name,
        "collator, s": f"{statistics.median(way.collator):.2f}",
        "model, s": f"{statistics.median(way.model):.2f}",
        "step, s": f"{statistics.median(way.step):.2f}",
        "times as fast": f"{statistics.median(faster):.2f}",
    }


def cache_rows(filling: Filling, trained: dict[str, Trained], apart: float) -> list[dict[str, str]]:
    """The table of the cache; `apart` is the largest relative difference of the losses with and without it."""
    saved = (statistics.median(trained["pixels"].step) - statistics.median(trained["cached"].step)) / BATCH
    images = filling.images
    facts = {
        "opening (SHA-256 of the tower), s": f"{filling.opened:.2f}",
        "filling, s per image": f"{filling.filled / images:.3f}",
        "seeing that an image is there, s": f"{filling.checked / images:.4f}",
        "saved, s per image and epoch": f"{saved:.3f}",
        "paid back after epochs": f"{filling.filled / images / saved:.2f}",
        "disk, bytes per image": f"{filling.size / images:,.0f}",
        "losses differ by at most": f"{apart:.0e}",
    }
    return [{"": name, "value": value} for name, value in facts.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one step of small models, nothing written")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way (default: 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tables = measure(Path(folder), 1 if options.quick else options.rounds, options.quick)
    for title, table in tables.items():
        show(title, table)
    if not options.quick:
        notes = f"{options.rounds} rounds of {STEPS} steps, {torch.get_num_threads()} threads, fp32 on the CPU."
        print(write("features", "python benchmarks/features.py", tables, notes))


if __name__ == "__main__":
    main()
