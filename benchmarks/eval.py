"""Measures evaluation by generation: `mmdora eval` beside a plain loop that asks one question at a time.

    python benchmarks/eval.py            # 960 questions, 5 rounds: table, results/eval_cpu.{json,md} (or eval_cuda)
    python benchmarks/eval.py --quick    # 48 questions, 1 round; nothing is written

The plain loop is what a user of transformers writes: open the image, `apply_chat_template`, the processor, greedy
`generate` with the key-value cache, decode. Both ask tiny-llava (fp32) the same questions, of easy-VQA (short answers)
or of drawn scenes (captions, several times longer), with at most 32 new tokens. Both must give the same texts, or the
benchmark fails. mmdora's time includes the pass over the records, the digest of the weights, scoring and intervals. The
ways take turns within a round. A ratio is the median over rounds of the ratios within a round. `plain loop again` is
the plain loop measured twice, which shows the noise. There is one thread, so that CPU time and wall time differ only by
other programs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from harness import show, write

from mmdora.data_prep import easy_vqa, scenes
from mmdora.evaluate.run import evaluate
from mmdora.models.load import load
from mmdora.records.images import open_image
from mmdora.records.reader import read_records
from mmdora.records.row import Row
from mmdora.records.turns import prompt_messages

TOKENS = 32  # The most new tokens of an answer.
BATCHES = (1, 16, 64)
PLAIN, AGAIN = "plain loop, batch 1", "plain loop again (A/A)"


def plain(model: Any, processor: Any, records: list[Row]) -> list[str]:
    """Answer one question after the other."""
    texts = []
    for record in records:
        images = [open_image(image) for image in record["images"]]
        prompt = processor.apply_chat_template(prompt_messages(record), tokenize=False, add_generation_prompt=True)
        special = not prompt.startswith(processor.tokenizer.bos_token)
        inputs = processor(images=images, text=prompt, return_tensors="pt", add_special_tokens=special)
        inputs = inputs.to(model.device, dtype=model.dtype)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, use_cache=True)
        new = ids[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    return texts


def ours(model: Any, processor: Any, records: list[Row], batch_size: int) -> list[str]:
    evaluation = evaluate(model, processor, records, batch_size=batch_size, max_new_tokens=TOKENS)
    return [row["prediction"] for row in evaluation.rows]


def timed(work: Callable[[], list[str]]) -> tuple[list[str], float, float]:
    """Run `work`; gives its texts, the CPU seconds of this process, and the wall seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    texts = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return texts, time.process_time() - cpu, time.perf_counter() - wall


def compare(model: Any, processor: Any, records: list[Row], rounds: int) -> list[dict[str, Any]]:
    """A row for each way.

    Raises:
        SystemExit: if two ways give different texts.
    """
    given = (model, processor, records)
    ways: dict[str, Callable[[], list[str]]] = {PLAIN: lambda: plain(*given)}
    ways |= {f"mmdora, batch {size}": lambda size=size: ours(*given, size) for size in BATCHES}
    ways[AGAIN] = lambda: plain(*given)
    plain(model, processor, records[:4])  # The first answers are slower, so both ways warm up.
    ours(model, processor, records[:4], 4)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    expected: list[str] = []
    for _ in range(rounds):
        for name, work in ways.items():
            texts, *spent = timed(work)
            expected = expected or texts
            if wrong := [i for i, (a, b) in enumerate(zip(texts, expected, strict=True)) if a != b]:
                i = wrong[0]
                raise SystemExit(
                    f"{name}: {len(wrong)} texts differ; {records[i]['id']}: {texts[i]!r}, {expected[i]!r}"
                )
            times[name].append((spent[0], spent[1]))
    rows = []
    for name, spent in times.items():
        cpu, wall = (statistics.median(pair[side] for pair in spent) for side in (0, 1))
        ratios = [
            statistics.median(p[side] / s[side] for p, s in zip(times[PLAIN], spent, strict=True)) for side in (0, 1)
        ]
        rows.append(
            {
                "": name,
                "questions/CPU s": f"{len(records) / cpu:.1f}",
                "times as many": f"{ratios[0]:.2f}",
                "questions/s": f"{len(records) / wall:.1f}",
                "times as many ": f"{ratios[1]:.2f}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="48 questions, one round, nothing written")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    questions, rounds = (48, 1) if options.quick else (960, options.rounds)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load("tiny-llava", device=device)
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
        easy, drawn = Path(folder) / "easy", Path(folder) / "drawn"
        easy_vqa.prepare(easy)
        scenes.prepare(drawn, kind="caption", rows=1, held_out=questions // 4, workers=1)
        for title, root, count in (("easy-VQA", easy, questions), ("captions of drawn scenes", drawn, questions // 4)):
            records = read_records(root / "test.jsonl")
            chosen = [records[i] for i in range(count)]
            tables[f"{title}, {count} questions"] = compare(model, processor, chosen, rounds)
    for title, rows in tables.items():
        show(f"{title}, tiny-llava on {device}, fp32, one thread", rows)
    if not options.quick:
        notes = "All ways gave the same texts. A row's ratios are to the plain loop of the same round, medians."
        print(write(f"eval_{device}", f"python benchmarks/eval.py --rounds {rounds}", tables, notes))


if __name__ == "__main__":
    main()
