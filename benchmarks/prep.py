"""Measures the preparation of a file in LLaVA's format: rows per second, and memory against the number of rows.

    python benchmarks/prep.py            # 10,000 to 1,000,000 rows (0.7 GB on disk): results/prep.{json,md}
    python benchmarks/prep.py --quick    # a few thousand rows, nothing written

Rows are conversations as long as those of mix665k (some without a picture), about 2,000 pictures in random order, which
the command checks for existence and readable headers. The command is `mmdora prep llava`, started as a user starts it.
Its wall time includes everything: start, reading, converting, image checks, records, hashes, card and report. Memory is
the largest sum of anonymous memory (RssAnon) over its processes, read every 50 ms. `json.load`, for comparison, only
reads the same file into memory as a whole.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import memory_of, show, write
from PIL import Image

from mmdora.prepare.index import CACHE_KIB

PICTURES = 2000  # Number of different pictures that the rows are about.
WORDS = ("the", "image", "shows", "a", "large", "red", "bus", "on", "street", "with", "people", "waiting", "near", "it")
LOAD = "import json, sys; json.load(open(sys.argv[1], encoding='utf-8'))"


def write_rows(path: Path, rows: int) -> None:
    """Write a JSON list in LLaVA's format, the same in each run."""
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            turns = []
            for turn in range(2 * chance.randint(1, 6)):
                words = " ".join(chance.choices(WORDS, k=chance.randint(3, 12 if turn % 2 == 0 else 40)))
                turns.append({"from": ("human", "gpt")[turn % 2], "value": words})
            row: dict[str, Any] = {"id": f"{number:012d}"}
            if chance.random() < 0.94:  # In mix665k 40,688 of 665,298 rows have no picture.
                row["image"] = f"coco/{chance.randrange(PICTURES):06d}.jpg"
                turns[0]["value"] = "<image>\n" + turns[0]["value"]
            file.write(("[\n" if number == 0 else ",\n") + json.dumps(row | {"conversations": turns}))
        file.write("\n]\n")


def measured(*command: str) -> tuple[float, int]:
    """Run a Python command; returns its seconds, and the peak in bytes of its and its children's anonymous memory."""
    begun, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, _memory_below(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - begun, peak


def _memory_below(pid: int) -> int:
    """Anonymous memory in bytes of a process and of all processes that it started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return memory_of(pid) + sum(_memory_below(int(child)) for child in children)
    except OSError:  # The process has ended.
        return 0


def everything(sizes: list[int], workers: list[int]) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "coco").mkdir()
        for number in range(PICTURES):
            Image.new("RGB", (64, 48), (number % 256, number // 256, 90)).save(root / f"coco/{number:06d}.jpg")
        for size in sizes:
            file, out = str(root / f"{size}.json"), str(root / "out")
            write_rows(Path(file), size)
            prep = ("-m", "mmdora", "prep", "llava", "--in", file, "--images", folder, "--out", out, "--workers")
            runs: dict[str, tuple[str, ...]] = {f"mmdora prep --workers {n}": (*prep, str(n)) for n in workers}
            if size <= 100_000:  # For a million rows `json.load` would take gigabytes.
                runs["json.load"] = ("-c", LOAD, file)
            for name, command in runs.items():
                taken, peak = measured(*command)
                rows.append(
                    {
                        "": name,
                        "rows": f"{size:,}",
                        "MB": f"{os.path.getsize(file) / 1e6:,.0f}",
                        "seconds": f"{taken:.1f}",
                        "rows/s": f"{size / taken:,.0f}",
                        "peak memory MB": f"{peak / 1e6:,.0f}",
                    }
                )
            os.unlink(file)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few thousand rows, nothing written")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="rows of the files")
    options = parser.parse_args()
    workers = sorted({1, 2, len(os.sched_getaffinity(0))})
    rows = everything([2_000, 8_000] if options.quick else options.rows, workers)
    show("mmdora prep llava", rows)
    if not options.quick:
        notes = (
            f"{PICTURES:,} pictures of 64x48, checked by their headers; memory is that of all processes, up to "
            f"{CACHE_KIB >> 10} MiB of it the cache of the ids seen. Usable cores: {len(os.sched_getaffinity(0))}."
        )
        print(write("prep", "python benchmarks/prep.py", {"LLaVA's format": rows}, notes))


if __name__ == "__main__":
    main()
