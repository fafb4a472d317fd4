"""Measures a model of 7 billion parameters on a CPU: inspecting it, loading it in 4 bits, and a training step on it.

    python benchmarks/size.py              # 14 GB on disk for as long as it runs: table, results/size.{json,md}
    python benchmarks/size.py --layers 4   # so many of the language model's 32 layers, for a machine with little time
    python benchmarks/size.py --quick      # a small base, in a minute or two; nothing is written

The base has the dimensions, names, files and dtype of LLaVA-1.5-7B and random weights. Each row of the table is a
process of its own. RssAnon (memory without mapped files) is the largest of 20 readings a second. Resident memory also
has the pages of files that are mapped, which the system drops where memory is short.

`inspect` estimates `configs/llava_1.5_7b_dora.yaml`, the recipe without quantisation, for all layers. What was
quantised in loading is written to a folder, and the step trains on that one, because a CPU takes minutes to quantise.
The step is `mmdora train` from start to saved adapter, by `configs/llava_1.5_7b_qdora.yaml`: DoRA of rank 64 on the
language model in nf4, the projector whole, gradient checkpointing. Its one row has 640 tokens, 576 of them a picture's.
What is not packed is in fp32, and so is the arithmetic, because a CPU without units for bf16 is up to 300 times slower
in it. The estimate is that of `mmdora inspect` for a batch of the same row; what is compared with it is resident memory
beyond that of the imports, because packed weights stay mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# glibc keeps holes between freed blocks of under 32 MB. They are several hundred MB here, and no part of the step.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))

import yaml
from harness import Run, measured, show, write
from random_llava import make_base, write_config

CARDS = Path(__file__).parents[1] / "configs"
LAYERS = 32
TOKENS = 640
"""Tokens of the row: a picture has 576, and the question and its answer are as long as is left."""
PACKED = {"type": "nf4", "compute": "fp32"}
BOUNDS = {"inspect CPU s": 20, "load GB": 6, "step GB": 9, "estimate": 0.1}
"""The goals: seconds, RssAnon in loading, resident memory in the step, and the estimate's largest relative error."""
WORK = {
    "make": "make the base: random weights in bf16",
    "imports": "imports alone",
    "inspect": "mmdora inspect of the recipe in bf16",
    "load": 'mmdora.load(dtype="bf16", quantize="nf4"), and written',
    "estimate": "estimate for the row",
    "train": "mmdora train, one step in nf4, adapter saved",
}


def do(work: str, folder: Path, layers: int, small: bool) -> None:
    """Do one thing in this process, whose time and memory are measured from outside."""
    if work == "make":
        (folder / "base").mkdir()
        make_base(folder / "base", layers, small)
        return
    import bitsandbytes  # noqa: F401

    import mmdora
    import mmdora.train
    from mmdora.cli import main as command
    from mmdora.models.quantize import saved_settings

    if work == "inspect":
        raise SystemExit(command(["inspect", str(folder / "whole"), "--config", str(folder / "dora.yaml")]))
    if work == "train":
        raise SystemExit(command(["train", str(folder / "qdora.yaml")]))
    if work == "load":
        model, processor = mmdora.load(folder / "base", dtype="bf16", quantize=PACKED)
        saved_settings(model)
        model.save_pretrained(folder / "packed", max_shard_size="300MB")
        processor.save_pretrained(folder / "packed")
    if work == "estimate":
        print(estimated(folder / "qdora.yaml"), estimated(folder / "whole.yaml"))


def estimated(path: Path) -> int:
    """Bytes that the estimate gives for a batch of the config's one row."""
    from mmdora.adapt.inject import make_plan
    from mmdora.config import load_config
    from mmdora.families import family_of
    from mmdora.models.base import skeleton_of
    from mmdora.models.load import load_processor
    from mmdora.records.reader import read_records
    from mmdora.train.memory import estimate

    config = load_config(path)
    model, data = skeleton_of(config), config.data
    batch = family_of(load_processor(config.base)).batch([read_records(data.sources[""].train, data.images)[0]])
    assert batch["input_ids"].shape == (1, TOKENS), batch["input_ids"].shape
    return estimate(model, make_plan(model, config.adapt), config, batch).peak


def prepare(folder: Path) -> None:
    """Write the record and the config beside the base."""
    import numpy as np
    from PIL import Image

    from mmdora.families import family_of
    from mmdora.models.load import load_processor

    noise = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "picture.png")
    family = family_of(load_processor(str(folder / "base")))

    def turns(words: int) -> list[dict[str, Any]]:
        asked = [{"type": "image"}, {"type": "text", "text": "red" + " red" * words}]
        answer = [{"type": "text", "text": "red"}]
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]

    def tokens(words: int) -> int:
        return family.read([family.render(turns(words))], [[Image.fromarray(noise)]], left=False)["input_ids"].shape[1]

    words = TOKENS - tokens(0)
    record = {"id": "0", "messages": turns(words), "images": ["picture.png"]}
    (folder / "row.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    for name, card, base in (("dora", "dora", "whole"), ("qdora", "qdora", "packed"), ("whole", "qdora", "whole")):
        tree = yaml.safe_load((CARDS / f"llava_1.5_7b_{card}.yaml").read_text(encoding="utf-8"))
        tree["model"] |= {"base": str(folder / base)}
        if card == "qdora":
            tree["model"]["dtype"] = "fp32"
            tree["model"]["quantize"] = None if base == "packed" else PACKED
            tree["data"] |= {
                "train": str(folder / "row.jsonl"),
                "images": str(folder),
                "max_length": TOKENS,
                "workers": 0,
            }
            tree["training"] |= {"output": str(folder / "run"), "accumulation": 1, "precision": "fp32"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


def measure(folder: Path, layers: int, small: bool) -> tuple[list[dict[str, Any]], str]:
    """The table, and the note with the estimate."""
    rows, runs = list[dict[str, Any]](), dict[str, Run]()
    for work, title in WORK.items():
        if work == "imports":
            write_config(folder / "whole", LAYERS, small)
            prepare(folder)
        command = [sys.executable, __file__, "--do", work, str(folder), "--layers", str(layers), *["--quick"] * small]
        run = runs[work] = measured(command)
        rows.append(
            {
                "work": title,
                "wall s": f"{run.wall:.0f}",
                "CPU s": f"{run.cpu:.0f}",
                "peak RssAnon GB": f"{run.anonymous / 1e9:.2f}",
                "with mapped files GB": f"{run.resident / 1e9:.2f}",
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    asked, whole = map(int, runs["estimate"].said.split()[-2:])
    taken = runs["train"].resident - runs["imports"].resident
    found = {
        "inspect CPU s": runs["inspect"].cpu,
        "load GB": runs["load"].anonymous / 1e9,
        "step GB": runs["train"].resident / 1e9,
        "estimate": abs(asked / taken - 1),
    }
    missed = [f"{name} {found[name]:.2f} > {bound}" for name, bound in BOUNDS.items() if found[name] > bound]
    note = (
        f"{layers} of {LAYERS} layers. The step was estimated at {asked / 1e9:.2f} GB and took {taken / 1e9:.2f} GB "
        f"beyond the imports: {asked / taken - 1:+.1%}. With all layers the estimate is {whole / 1e9:.2f} GB. Goals "
        f"with all layers: inspect under {BOUNDS['inspect CPU s']} CPU seconds, loading under {BOUNDS['load GB']} GB "
        f"of RssAnon, the step under {BOUNDS['step GB']} GB resident, the estimate within {BOUNDS['estimate']:.0%}. "
        f"Missed here: {'; '.join(missed) if missed else 'none'}."
    )
    return rows, note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small base; nothing written")
    parser.add_argument("--layers", type=int, default=LAYERS, help="language layers of the base (0.4 GB each)")
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made: room for 17 GB")
    parser.add_argument("--do", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        return do(options.do[0], Path(options.do[1]), options.layers, options.quick)
    layers = 2 if options.quick else options.layers
    with tempfile.TemporaryDirectory(prefix="mmdora-size-", dir=options.dir) as folder:
        rows, note = measure(Path(folder), layers, options.quick)
    title = f"LLaVA-1.5-7B's size on a CPU, {layers} of {LAYERS} layers"
    show(title, rows)
    print(note)
    if not options.quick:
        print(write("size", f"python benchmarks/size.py --layers {layers}", {title: rows}, note))


if __name__ == "__main__":
    main()
