"""Measures merging an adapter into a checkpoint: mmdora's merge from disk beside `cp` and PEFT.

    python benchmarks/merge.py            # 4.4 GB of bf16 in LLaVA-1.5-7B's layout: table, results/merge.{json,md}
    python benchmarks/merge.py --layers 32          # all of it, 14 GB
    python benchmarks/merge.py --quick    # some tens of MB, in under a minute; nothing is written

The base has the dimensions, names and files of LLaVA-1.5-7B, with random weights and fewer language layers. The adapter
is a DoRA of rank 64 on all language linears. Base, adapter and one result at a time lie in a folder that is deleted at
the end. The ways take turns, each in a process of its own, with a warm file cache. Times include imports. PEFT's way is
`from_pretrained` of base and adapter in bf16, `merge_and_unload`, `save_pretrained`. Memory is the largest RssAnon
(memory without mapped files) of 20 readings a second.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from harness import Run, measured, show, write
from random_llava import make_adapter, make_base

WAYS = ("cp", "mmdora: imports alone", "mmdora: merge", "mmdora: export", "PEFT")


def do(way: str, base: Path, adapter: Path, out: Path) -> None:
    """Merge in one way; each call has to run in a process of its own."""
    if way.startswith("mmdora"):
        from mmdora.export.merge_disk import DiskMerge
        from mmdora.export.run import export

        if way == "mmdora: merge":
            out.mkdir()
            DiskMerge(base, adapter, "bf16").write(out)
        elif way == "mmdora: export":
            print(export(adapter, out, dtype="bf16", parity="tensors"))
        return
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(out)


def difference(mine: Path, theirs: Path) -> float:
    """max|a - b| / max|b| for the tensor of two checkpoints in which it is largest.

    Raises:
        SystemExit: if the checkpoints do not have the same tensors.
    """
    from mmdora.export.mapped import MappedCheckpoint

    ours, other = MappedCheckpoint(mine), MappedCheckpoint(theirs)
    if ours.file_names.keys() != other.file_names.keys():
        raise SystemExit(f"{mine} and {theirs} are checkpoints of other models")
    worst = 0.0
    for place, name in ours.file_names.items():
        a, b = ours.tensors[name], other.tensors[other.file_names[place]]
        for rows in zip(a.split(1024), b.split(1024), strict=True):
            left, right = (part.float() for part in rows)
            worst = max(worst, float((left - right).abs().max() / right.abs().max()))
    return worst


def compare(folder: Path, layers: int, rank: int, rounds: int, small: bool) -> tuple[list[dict[str, Any]], str]:
    """The table of results, and a note that says what was merged."""
    from mmdora.export.shards import read_shards

    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    tell(f"writing a base of {layers} language layers")
    make_base(base, layers, small)
    tell(f"writing an adapter of rank {rank}")
    linears = make_adapter(base, adapter, rank)
    shards = read_shards(base)
    stored = [tensor.size for shard in shards for tensor in shard.tensors.values()]
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    apart = 0.0
    for number in range(1, rounds + 1):
        for way in WAYS:
            out = folder / ("kept" if way == "mmdora: export" else "out")
            command = [sys.executable, __file__, "--do", way, str(base), str(adapter), str(out)]
            command = ["cp", "-r", "--reflink=never", str(base), str(out)] if way == "cp" else command
            runs[way].append(measured(command))
            tell(f"round {number} of {rounds}: {way}: {runs[way][-1].wall:.1f} s")
            os.sync()  # Data that still wait to be written would slow the next way down.
            if way == "PEFT":
                apart = difference(folder / "kept", out)
            if way != "mmdora: export":
                shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(folder / "kept")
    peft = runs["PEFT"]
    rows = []
    for way, mine in runs.items():
        wall, cpu, memory = (statistics.median(values) for values in zip(*(run[:3] for run in mine), strict=True))
        ratio = statistics.median(run.wall / peer.wall for run, peer in zip(mine, peft, strict=True))
        rows.append(
            {
                "way": way,
                "wall s": f"{wall:.1f}",
                "CPU s": f"{cpu:.1f}",
                "peak RssAnon MB": f"{memory / 1e6:.0f}",
                "wall / PEFT": f"{ratio:.2f}",
            }
        )
    files = f"{len(shards)} file{'s' if len(shards) > 1 else ''}"
    times = f"medians of {rounds} rounds" if rounds > 1 else "one round"
    note = (
        f"{sum(stored) / 1e9:.2f} GB of bf16 in {files}, the largest tensor {max(stored) / 1e6:.0f} MB; DoRA of rank "
        f"{rank} on {linears} linears; {times}. `merge` writes the checkpoint, `export` also reads it back and "
        f"compares it with the equations. mmdora's tensors and PEFT's, merged in bf16, differ by max-rel {apart:.1e}."
    )
    return rows, note


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small base, one round, nothing written")
    parser.add_argument("--layers", type=int, default=8, help="language layers (0.4 GB each; LLaVA-1.5-7B has 32)")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made: room for three bases")
    parser.add_argument("--do", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        way, *paths = options.do
        return do(way, *map(Path, paths))
    rounds, layers = (1, 2) if options.quick else (options.rounds, options.layers)
    with tempfile.TemporaryDirectory(prefix="mmdora-merge-", dir=options.dir) as folder:
        rows, note = compare(Path(folder), layers, options.rank, rounds, options.quick)
    show("merge of an adapter into a checkpoint", rows)
    print(note)
    if not options.quick:
        command = f"python benchmarks/merge.py --layers {layers} --rank {options.rank} --rounds {rounds}"
        print(f"written: {write('merge', command, {'merge': rows}, note)}")


if __name__ == "__main__":
    main()
