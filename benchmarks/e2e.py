"""Measures a whole training, from the base's files to the saved adapter: mmdora beside TRL's `SFTTrainer` with PEFT.

    make bench-e2e                        # table, results/e2e.{json,md}
    python benchmarks/e2e.py --quick      # one small shape, two steps, nothing written

The same base, rows, order of sizes, steps and batch go through `mmdora.train` and through `SFTTrainer` with PEFT's LoRA
and DoRA: rank 16 on all linears of the language model, AdamW, fp32, without activation checkpointing (TRL's default is
to use it), without evaluation and checkpoints. Rows have one picture and a question; the loss is on the answer in both,
and a note says on how many tokens. Every run is a process of its own, forked after the imports, and runs take turns.
Both write what they always write; what a start takes is a part of it. Time is process CPU time, so that a busy machine
counts little. Memory is the largest resident size of the process above that before the run. `TRL LoRA again` is the
peer measured twice: how far it is from 1 is the noise.

The shapes are those of Qwen2.5-VL and LLaVA with random weights, small, but with a language model that dominates; their
vocabulary is as small a part of it as in a 7B, so that the loss in chunks gains no more than there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))  # for the checkpoints of tests/families

import torch
from harness import show, write
from measures import ratio
from peft import LoraConfig
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import mmdora
from mmdora.families import IGNORE, family_of
from mmdora.records.reader import read_records
from tests.families.checkpoints import RECIPES

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PEER = "TRL LoRA"
WAYS = (PEER, f"{PEER} again", "TRL DoRA", "mmdora LoRA", "mmdora DoRA")
GOAL = 0.8
"""Time and memory of mmdora's DoRA, relative to those of LoRA by TRL with PEFT, are to be at most this."""
RANK, RATE, DROPOUT = 16, 1e-4, 0.05


@dataclass(frozen=True)
class Shape:
    """A base to be made, and the training of it."""

    family: str
    hidden: int = 1024
    layers: int = 2
    batch: int = 4
    steps: int = 8
    answer: int = 128  # tokens of an answer, about

    def __str__(self) -> str:
        sizes = f"hidden {self.hidden}, {self.layers} layers, {self.steps} steps of {self.batch} rows"
        return f"{self.family}, {sizes}, about {self.answer} learned tokens each"


SHAPES = (Shape("qwen2_5_vl"), Shape("llava"))
SMALL = (Shape("llava", hidden=128, layers=1, batch=2, steps=2, answer=16),)


def make_base(shape: Shape, folder: Path) -> None:
    """Write a checkpoint with random weights, and its processor."""
    recipe = RECIPES[shape.family]
    processor = recipe.make_processor()
    keys = recipe.config(processor)
    heads = shape.hidden // 64
    text = {"hidden_size": shape.hidden, "intermediate_size": 11 * shape.hidden // 4, "head_dim": 64}
    text |= {"num_hidden_layers": shape.layers, "num_attention_heads": heads, "num_key_value_heads": heads}
    if "rope_parameters" in keys["text_config"]:
        text["rope_parameters"] = keys["text_config"]["rope_parameters"] | {"mrope_section": [8, 12, 12]}
    keys["text_config"] |= text
    if "out_hidden_size" in keys["vision_config"]:
        keys["vision_config"]["out_hidden_size"] = shape.hidden
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(CONFIG_MAPPING[shape.family](**keys)).save_pretrained(folder)
    processor.save_pretrained(folder)


def make_rows(shape: Shape, folder: Path) -> Path:
    """Write records with one picture each, whose answers differ in length by up to a quarter."""
    drawn = random.Random(0)
    lines = []
    for number in range(shape.batch * shape.steps):
        pixels = bytes(drawn.randrange(256) for _ in range(3 * 64 * 64))
        Image.frombytes("RGB", (64, 64), pixels).save(folder / f"{number}.png")
        words = drawn.choices(
            ("square", "circle", "red", "blue", "picture"), k=int(shape.answer * drawn.uniform(0.3, 0.4))
        )
        asked = [{"type": "image"}, {"type": "text", "text": "Describe the picture."}]
        said = [{"type": "text", "text": " ".join(words)}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        lines.append(json.dumps({"id": str(number), "messages": turns, "images": [f"{number}.png"]}))
    path = folder / "train.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def by_mmdora(shape: Shape, base: Path, rows: Path, out: Path, method: str) -> None:
    adapter = {"method": method, "rank": RANK, "alpha": 2 * RANK, "dropout": DROPOUT, "targets": list(LINEARS)}
    config = {
        "model": {"base": str(base)},
        "adapt": {"vision": {"method": "none"}, "projector": {"method": "none"}, "language": adapter},
        "data": {"train": str(rows)},
        "training": {"output": str(out), "steps": shape.steps, "batch_size": shape.batch, "lr": RATE, "report_to": []},
    }
    mmdora.train(config, say=lambda line: None)


def by_trl(shape: Shape, base: Path, rows: Path, out: Path, method: str) -> None:
    trainer = trl_trainer(shape, base, rows, out, method)
    trainer.train()
    trainer.save_model(str(out / "adapter"))


def trl_trainer(shape: Shape, base: Path, rows: Path, out: Path, method: str) -> Any:
    import datasets

    trl: Any = import_module("trl")  # It is an extra.
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    chats = [
        {"prompt": r["messages"][:1], "completion": r["messages"][1:], "images": [str(rows.parent / r["images"][0])]}
        for r in records
    ]
    table = datasets.Dataset.from_list(chats).cast_column("images", datasets.List(datasets.Image()))
    names = "|".join(LINEARS)
    return trl.SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32),
        args=trl.SFTConfig(
            str(out), max_steps=shape.steps, per_device_train_batch_size=shape.batch, learning_rate=RATE,
            max_length=None, lr_scheduler_type="cosine", warmup_steps=1, gradient_checkpointing=False, bf16=False,
            use_cpu=True, save_strategy="no", logging_steps=10, report_to=[], disable_tqdm=True,
        ),
        train_dataset=table,
        processing_class=AutoProcessor.from_pretrained(base),
        peft_config=LoraConfig(
            r=RANK, lora_alpha=2 * RANK, lora_dropout=DROPOUT, use_dora=method == "dora",
            target_modules=rf".*language_model.*\.({names})",
        ),
    )  # fmt: skip


def learned(shape: Shape, base: Path, rows: Path, out: Path) -> dict[str, Any]:
    """The tokens of all rows, and those with a loss, as both see them."""
    records = read_records(rows)
    ours = family_of(AutoProcessor.from_pretrained(base)).batch([records[i] for i in range(len(records))])
    trainer = trl_trainer(shape, base, rows, out, "lora")
    theirs = trainer.data_collator([trainer.train_dataset[i] for i in range(len(records))])
    count = {
        name: (int(batch["attention_mask"].sum()), int((batch["labels"] != IGNORE).sum()))
        for name, batch in (("mmdora", ours), ("TRL", theirs))
    }
    return {name: f"{learns:,} of {tokens:,}" for name, (tokens, learns) in count.items()}


def in_a_fork(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds, MB of peak memory above the level before, and the result of a call in a forked process."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def run() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # This makes Linux forget the peak so far.
        level, begun = _peak(), time.process_time()
        found = work()
        send.send((time.process_time() - begun, (_peak() - level) / 1e6, found))

    process = context.Process(target=run)
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise SystemExit("a run ended without a result; its traceback is above") from None
    finally:
        process.join()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def measure(shape: Shape, rounds: int, root: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each way, and the counts of tokens."""
    base, data = root / "base", root / "data"
    data.mkdir(parents=True)
    in_a_fork(lambda: make_base(shape, base))
    rows = make_rows(shape, data)
    tokens = in_a_fork(lambda: learned(shape, base, rows, root / "counted"))[2]
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    peaks: dict[str, list[float]] = {name: [] for name in WAYS}
    order, shuffle = list(WAYS), random.Random(0)
    for number in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            out, method = root / f"{name}-{number}".replace(" ", "-"), "dora" if "DoRA" in name else "lora"
            train = by_mmdora if name.startswith("mmdora") else by_trl
            seconds, peak, _ = in_a_fork(partial(train, shape, base, rows, out, method))
            assert list(out.glob("adapter/adapter_model.safetensors")), out
            times[name].append(seconds)
            peaks[name].append(peak)
            print(f"{shape.family}, round {number + 1}: {name} {seconds:.1f} s, {peak:,.0f} MB", flush=True)
    found = [
        {
            "way": name,
            "CPU seconds": f"{statistics.median(times[name]):.1f}",
            f"/ {PEER}": f"{ratio(times, name, PEER):.3f}",
            "peak MB": f"{statistics.median(peaks[name]):,.0f}",
            f"memory / {PEER}": f"{ratio(peaks, name, PEER):.3f}",
        }
        for name in WAYS
    ]
    return found, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small shape, nothing written")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per shape (default: 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trl: Any = import_module("trl")
    print(f"trl {trl.__version__}, {mmdora.train.__name__}")  # Both import what they need by now.

    tables: dict[str, list[dict[str, Any]]] = {}
    notes = []
    for shape in SMALL if options.quick else SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            tables[str(shape)], tokens = measure(shape, 1 if options.quick else options.rounds, Path(folder))
        show(str(shape), tables[str(shape)])
        notes.append(f"{shape.family}: tokens with a loss, of all: " + ", ".join(f"{k} {v}" for k, v in tokens.items()))
        ours = tables[str(shape)][-1]
        met = all(float(ours[column]) <= GOAL for column in (f"/ {PEER}", f"memory / {PEER}"))
        notes.append(f"{shape.family}: time and memory of mmdora's DoRA at most {GOAL}: {'met' if met else 'not met'}")
    print("\n".join(notes))
    if not options.quick:
        text = f"Process CPU time with one thread, {options.rounds} rounds.\n\n" + "\n".join(f"- {n}" for n in notes)
        print(write("e2e", " ".join(["python", "benchmarks/e2e.py", *sys.argv[1:]]), tables, text))


if __name__ == "__main__":
    main()
