"""Measures data loading: speed per worker beside bare Pillow, and memory and time to the first batch of many records.

    python benchmarks/loader.py            # 1 k and 1 M records: tables, results/loader.{json,md}; some ten minutes
    python benchmarks/loader.py --quick    # 1 k and 20 k records, in under a minute; nothing is written

Records, pictures (JPEG, 640x480) and the datasets cache lie in a folder that is deleted at the end.

Speed: the same rows go through the same `DataLoader` in the same order, by turns in two ways. One makes training
batches (record, template, decoded and processed picture, tokens, labels). The other only lets Pillow decode each
picture and resize it to the same size (bicubic), and drops the result. Times are CPU time of all processes, so that
other work on the machine matters little. Each process has one thread, like loader workers.

Memory (RssAnon) and time to the first batch: each number of records is measured in a process of its own, in which the
Arrow table and the token counts have been prepared. Imports and the model are not counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # The loader workers run in parallel already.

import numpy as np
import torch
from harness import memory_of, show, write
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import AutoProcessor, CLIPImageProcessor, LlavaProcessor

from mmdora.batches.fit import Rows, fit
from mmdora.batches.sampler import GroupedSampler
from mmdora.families import family_of
from mmdora.families.template import encode
from mmdora.models.locate import resolve
from mmdora.records.images import open_image
from mmdora.records.reader import read_records, write_records
from mmdora.records.record import qa_record

BATCH, BATCHES, MAX_LENGTH = 8, 50, 2048  # Rows of a batch; batches of a pass; most tokens of a row.
NOUNS = ("circle", "square", "triangle", "large blue star", "small red box", "picture", "edge", "green line")


def processor_of(pixels: int) -> Any:
    """tiny-llava's own processor (64 pixels), or one that makes LLaVA-1.5's pictures (336) with the same tokenizer."""
    tiny = AutoProcessor.from_pretrained(resolve("tiny-llava"))
    if pixels == 64:
        return tiny
    pictures = CLIPImageProcessor(size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels})
    as_llava = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaProcessor(pictures, tiny.tokenizer, chat_template=tiny.chat_template, **as_llava)


def draw(folder: Path, pictures: int) -> None:
    random = np.random.default_rng(0)
    for number in range(pictures):
        blobs = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480))
        noisy = np.asarray(blobs, dtype=np.int16) + random.integers(-12, 13, (480, 640, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=85)


def records_in(folder: Path, rows: int, pictures: int) -> Path:
    """Write records with conversations of one to four turns, each about one picture."""
    random = Random(0)

    def said(most: int) -> str:
        return f"the {' beside the '.join(random.choices(NOUNS, k=random.randint(1, most)))}"

    talks = [[(f"{said(3)}?", f"{said(12)}.") for _ in range(random.randint(1, 4))] for _ in range(997)]
    path = folder / f"{rows}.jsonl"
    write_records(path, (qa_record(f"r{i}", f"{i % pictures}.jpg", talks[i % len(talks)]) for i in range(rows)))
    return path


def rows_of(path: Path, processor: Any) -> Rows:
    return fit(read_records(path), family_of(processor), MAX_LENGTH, "drop")


def batches(data: Dataset[Any], rows: Rows, collate: Callable[[list[Any]], Any], workers: int) -> Iterator[Any]:
    sampler = GroupedSampler(len(rows), BATCH, 0, rows.lengths, rows.has_image)
    return iter(DataLoader(data, BATCH, sampler=sampler, collate_fn=collate, num_workers=workers))


def prepare(paths: list[Path]) -> list[dict[str, float]]:
    """Seconds that each file of records costs once: for the Arrow table, and for the token counts."""
    processor, costs = processor_of(64), []
    for path in paths:
        started = time.monotonic()
        records = read_records(path)
        table = time.monotonic()
        fit(records, family_of(processor), MAX_LENGTH, "drop")
        costs.append({"once: table s": table - started, "once: counts s": time.monotonic() - table})
    return costs


def memory(path: Path) -> dict[str, float]:
    """Seconds to the first batch, and MB of anonymous memory: of this process alone, and together with two workers."""
    torch.set_num_threads(1)
    processor = processor_of(64)
    started, spent = time.monotonic(), cpu()
    rows = rows_of(path, processor)
    prepared = memory_of()
    collate = family_of(processor).batch
    loader: Any = batches(rows, rows, collate, 0)
    next(loader)
    costs = {"first batch s": time.monotonic() - started, "of it CPU s": cpu() - spent}
    for _ in range(BATCHES - 1):
        next(loader)
    costs |= {"prepared MB": prepared / 1e6, f"{BATCHES} batches MB": memory_of() / 1e6}
    loader = batches(rows, rows, collate, 2)
    for _ in range(BATCHES):
        next(loader)
    # Pss is proportional, so that pages that a worker shares with its parent count only once.
    costs["with 2 workers MB"] = sum(map(_pss_anon, ("self", *(worker.pid for worker in loader._workers)))) / 1e6
    return costs


def _pss_anon(pid: int | str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) * 1024


class Bare(Dataset[None]):
    """Lets Pillow open and resize each picture like the processor, and drops the result."""

    def __init__(self, rows: Rows, pixels: int):
        self.files = [record["images"][0].path for record in rows.records]
        self.size = (pixels, pixels) if pixels == 64 else (pixels * 640 // 480, pixels)

    def __getitem__(self, index: int) -> None:
        with Image.open(self.files[index]) as picture:
            picture.convert("RGB").resize(self.size, Image.Resampling.BICUBIC)


def cpu() -> float:
    """CPU seconds of this process and of those of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def speed(path: Path, pixels: int, rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure samples per second with 0, 1 and 2 workers, by turns with bare Pillow; and the parts of a row's time."""
    torch.set_num_threads(1)
    processor = processor_of(pixels)
    rows = rows_of(path, processor)
    collate, bare = family_of(processor).batch, Bare(rows, pixels)

    def exhaust(data: Dataset[Any], join: Callable[[list[Any]], Any], workers: int) -> tuple[float, float]:
        """Samples per CPU second and per wall second, including start and end of the workers."""
        started, clock = cpu(), time.monotonic()
        for _ in batches(data, rows, join, workers):
            pass  # What is measured is how long it takes to make the batches.
        return len(rows) / (cpu() - started), len(rows) / (time.monotonic() - clock)

    exhaust(rows, collate, 0)  # The first pass only warms up.
    table = []
    for workers in (0, 1, 2):
        pairs = [(exhaust(rows, collate, workers), exhaust(bare, len, workers)) for _ in range(rounds)]
        ours, plain = (np.median([pair[side] for pair in pairs], axis=0) for side in (0, 1))
        ratio = statistics.median(b[0] / o[0] for o, b in pairs)
        row = {
            "pictures": f"{pixels} px",
            "workers": workers,
            "samples/CPU s": f"{ours[0]:.0f}",
            "bare": f"{plain[0]:.0f}",
        }
        per_worker = [f"{side[1] / max(workers, 1):.0f}" for side in (ours, plain)]
        row |= {"CPU time, ours/bare": f"{ratio:.2f}", "samples/s per worker": per_worker[0], "bare ": per_worker[1]}
        table.append(row)
    return table, parts(rows, collate, bare)


def parts(rows: Rows, collate: Any, bare: Bare) -> list[dict[str, Any]]:
    """CPU time of each step in making a training row, in one process."""
    processor, rendered = collate.__self__.processor, collate.__self__.render_with_answers
    places = [range(start, start + BATCH) for start in range(0, len(rows), BATCH)]
    records = [[rows[i] for i in place] for place in places]
    texts = [[rendered(row["messages"])[0] for row in batch] for batch in records]
    opened = [[[open_image(row["images"][0])] for row in batch] for batch in records]
    steps: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "bare Pillow": (lambda place: [bare[i] for i in place], places),
        "training row, whole": (lambda place: collate([rows[i] for i in place]), places),
        "· record": (lambda place: [rows[i] for i in place], places),
        "· picture opened": (lambda batch: [open_image(row["images"][0]) for row in batch], records),
        "· template, answers": (
            lambda batch: [rendered(r["messages"]) for r in batch],
            records,
        ),
        "· processor": (
            lambda both: encode(processor, *both, left=False, offsets=True),
            [*zip(texts, opened, strict=True)],
        ),
        "· · of it: pictures": (lambda batch: processor.image_processor(batch, return_tensors="pt"), opened),
    }
    table = []
    for name, (step, items) in steps.items():
        started = time.process_time()
        for item in items:
            step(item)
        spent = 1e3 * (time.process_time() - started) / len(rows)
        table.append({"part": name, "CPU ms per row": f"{spent:.2f}"})
    return table


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process; loaders in there start their workers by the same method as in this one."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh, start_workers_by, (multiprocessing.get_start_method(),)) as pool:
        return pool.submit(function, *arguments).result()


def start_workers_by(method: str) -> None:
    multiprocessing.set_start_method(method, force=True)


def measure(folder: Path, quick: bool) -> dict[str, list[dict[str, Any]]]:
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    pictures, sizes = (16, (1_000, 20_000)) if quick else (128, (1_000, 1_000_000))
    draw(folder, pictures)
    few = records_in(folder, 64 if quick else 512, pictures)
    tables: dict[str, list[dict[str, Any]]] = {"speed": [], "records": []}
    for pixels in (336,) if quick else (336, 64):
        faster, where = apart(speed, few, pixels, 2 if quick else 7)
        tables["speed"] += faster
        tables[f"a row of {pixels} px"] = where
    paths = [records_in(folder, size, pictures) for size in sizes]
    once = apart(prepare, paths)
    held = [once[i] | apart(memory, path) for i, path in enumerate(paths)]
    held.append({key: held[1][key] - held[0][key] for key in held[0]})
    for name, row in zip([*(f"{size:,}" for size in sizes), "growth"], held, strict=True):
        tables["records"].append({"records": name} | {key: f"{value:.1f}" for key, value in row.items()})
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few records and rounds, nothing written")
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made (2 GB; default: the system's)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mmdora-loader-", dir=options.dir) as folder:
        tables = measure(Path(folder), options.quick)
    for title, table in tables.items():
        show(title, table)
    if not options.quick:
        print(write("loader", "python benchmarks/loader.py", tables))


if __name__ == "__main__":
    main()
