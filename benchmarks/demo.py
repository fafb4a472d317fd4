"""Measures the page under load, and one base with several adapters beside merged copies. Linux, CPU.

    python benchmarks/demo.py             # 50 clients, 200 cancelled requests; three adapters merged and switched
    python benchmarks/demo.py --quick     # a rehearsal, nothing written

For the load, the page has two columns with tiny-llava, and the clients (gradio_client) run on the same cores as the
server. The shared base is a LLaVA-shaped model of 87 M random parameters (350 MB). Its adapters have rank 16 on the
linears of the language model, and one of them also has a projector that was trained in full. Memory is RssAnon plus
RssFile, because merged weights are pages of their files. Latency is the wall time that a visitor waits. Both ways take
turns, and `again` is one of them measured twice, which shows the noise. benchmarks/decode.py measures process CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from harness import show, write
from page_load import MIB, TOKENS, load_run, rounded
from transformers import AutoConfig, AutoModelForImageTextToText

from mmdora.adapt.inject import inject, trainable_parameters
from mmdora.adapter_files.adapters import save_adapter
from mmdora.data_prep.easy_vqa import samples
from mmdora.demo.columns import load_columns
from mmdora.demo.compare import answer
from mmdora.demo.pictures import read_image
from mmdora.demo.turns import AnswerSettings, new_turn
from mmdora.models.load import load
from mmdora.models.locate import resolve

MERGED, SHARED = "merged copies", "one base, adapters switched"
SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
SIZES |= {"num_key_value_heads": 12, "head_dim": 64}
LANGUAGE = {"rank": 16, "targets": ["attention", "mlp"]}
PLANS: dict[str, Any] = {
    "lora": {"language": {"method": "lora", **LANGUAGE}},
    "dora": {"language": {"method": "dora", **LANGUAGE}},
    "dora and projector": {"language": {"method": "dora", **LANGUAGE}, "projector": {"method": "full"}},
}


def shared_run(asked: int) -> dict[str, list[dict[str, Any]]]:
    """Compare adapters on one base with merged models: memory in separate processes, latency by turns in this one."""
    with tempfile.TemporaryDirectory() as folder:
        base, adapters, merged = _models(Path(folder))
        memory = [
            _measured_apart("the base alone", [f"base={base}"]),
            _measured_apart(MERGED, merged),
            _measured_apart(SHARED, [*adapters, "--shared-base"]),
        ]
        return {"One base in memory": memory, "Its answers": latency(adapters, merged, asked)}


def _models(folder: Path) -> tuple[Path, list[str], list[str]]:
    """Write a base with random weights, adapters on it, and merged checkpoints; gives the base and their specs."""
    base = folder / "base"
    config: Any = AutoConfig.from_pretrained(resolve("tiny-llava"))
    config.text_config.update(SIZES)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(base)
    load("tiny-llava")[1].save_pretrained(base)
    adapters, merged = [], []
    for name, plan in PLANS.items():
        model, _ = load(base)
        inject(model, plan)
        with torch.no_grad():
            for _, parameter, _, _ in trainable_parameters(model):
                parameter.add_(0.02 * torch.randn_like(parameter))
        adapter, out = folder / f"adapter-{len(adapters)}", folder / f"merged-{len(adapters)}"
        save_adapter(model, adapter)
        subprocess.run([sys.executable, "-m", "mmdora", "export", str(adapter), str(out)], check=True)
        adapters.append(f"{name}={adapter}")
        merged.append(f"{name}={out}")
    return base, adapters, merged


def _measured_apart(way: str, specs: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", way, "--specs", *specs]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(way: str, specs: list[str], shared: bool) -> dict[str, Any]:
    """Measure the memory of one way in this process, after its first answers."""
    load_columns(["warm=tiny-llava"], say=lambda _: None)  # The memory that any first load takes is not counted.
    before, begun = psutil.Process().memory_info().rss, time.monotonic()
    columns = load_columns(specs, shared_base=shared, say=lambda _: None)
    loaded = time.monotonic() - begun
    _ask(columns, *samples(1)[0])
    taken = psutil.Process().memory_info().rss - before
    return {"way": way, "models": len(columns), "loaded in, s": rounded(loaded), "memory, MiB": round(taken / MIB)}


def latency(adapters: list[str], merged: list[str], asked: int) -> list[dict[str, Any]]:
    """Medians over columns and questions, and paired ratios to merged copies. All ways answer each question in turn."""
    copies = load_columns(merged, say=lambda _: None)
    shared = load_columns(adapters, shared_base=True, say=lambda _: None)
    ways = {MERGED: copies, f"{MERGED}, again": copies, SHARED: shared}
    times: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    order, shuffle = list(ways), random.Random(0)
    for path, question in [*samples(1), *samples(asked)]:
        shuffle.shuffle(order)
        for way in order:
            times[way] += _ask(ways[way], path, question)
    rows = []
    for way, answers in times.items():
        row = {"way": way}
        for key, words in (("first", "first token, ms"), ("each", "each further token, ms")):
            # The first question only warms up and is left out.
            pairs = zip(answers[len(copies) :], times[MERGED][len(copies) :], strict=True)
            taken = [(own[key], peer[key]) for own, peer in pairs if key in own and key in peer]
            row[words] = f"{1000 * statistics.median(own for own, _ in taken):.1f}"
            row[f"/ merged, {key}"] = f"{statistics.median(own / peer for own, peer in taken):.2f}"
        rows.append(row)
    return rows


def _ask(columns: list[Any], path: Path, question: str) -> list[dict[str, float]]:
    """For each column, seconds to the first token and, if there are enough tokens, seconds for each further token."""
    last: Any
    *_, last = answer(columns, [new_turn(columns, question, AnswerSettings(max_tokens=TOKENS))], [read_image(path)])
    rates = [{"each": 1 / state.tokens_per_s} if state.tokens_per_s else {} for state in last]
    return [{"first": state.first_token_s, **rate} for state, rate in zip(last, rates, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--cancels", type=int, default=200)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="a rehearsal: small, printed only")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--specs", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        specs = [spec for spec in given.specs if spec != "--shared-base"]
        print(json.dumps(measure(given.measure, specs, specs != given.specs)))
        return
    if given.quick:
        given.clients, given.cancels, given.questions = 6, 4, 2
    tables = {"Load": load_run(given.clients, given.cancels), **shared_run(given.questions)}
    for title, rows in tables.items():
        show(title, rows)
    if not given.quick:
        cores = f"On {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, the clients too."
        print(write("demo", " ".join(["python", "benchmarks/demo.py", *sys.argv[1:]]), tables, cores))


if __name__ == "__main__":
    main()
