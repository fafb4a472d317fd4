"""Measures the page under load, and one base with several adapters beside merged copies. Linux, CPU.

    python benchmarks/demo.py             # 50 clients, 200 cancelled requests; three adapters merged and switched
    python benchmarks/demo.py --quick     # a rehearsal, nothing written

Load: two columns of tiny-llava; the clients (gradio_client) run on the same cores as the server. One base in memory: a
LLaVA-shaped model of 87 M random parameters (350 MB), with adapters of rank 16 on the linears of its language model and
a projector that is trained in full. Memory is RssAnon plus RssFile, because merged weights are pages of their files.
Latency is the wall time that a visitor waits; both ways take turns, and `again` shows the noise. benchmarks/decode.py
measures process CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from gradio_client import Client, handle_file
from harness import memory_of, show, write
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

QUEUE = 32
TOKENS = 16
MIB = 2**20
MERGED, SHARED = "merged copies", "one base, adapters switched"
SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
SIZES |= {"num_key_value_heads": 12, "head_dim": 64}
LANGUAGE = {"rank": 16, "targets": ["attention", "mlp"]}
PLANS: dict[str, Any] = {
    "lora": {"language": {"method": "lora", **LANGUAGE}},
    "dora": {"language": {"method": "dora", **LANGUAGE}},
    "dora and projector": {"language": {"method": "dora", **LANGUAGE}, "projector": {"method": "full"}},
}


class Server:
    """`mmdora demo` in a process of its own."""

    def __init__(self, *arguments: str):
        command = [sys.executable, "-m", "mmdora", "demo", *arguments, "--port", str(_free_port())]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = next((line for line in self.process.stdout if line.startswith("mmdora:")), "")
        if not line:
            raise SystemExit("the page did not start")
        self.url = line.partition(" at ")[2].split()[0]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.terminate()
        self.process.wait()


def load_run(clients: int, cancels: int) -> list[dict[str, Any]]:
    """Let all clients ask at the same moment; after that, cancel requests one after the other."""
    with Server("base=tiny-llava", "twin=tiny-llava", "--queue", str(QUEUE)) as server:
        picture, question = samples(1)[0]
        with ThreadPoolExecutor(clients) as pool:
            opened = list(
                pool.map(
                    lambda _: Client(server.url, verbose=False, analytics_enabled=False, ssl_verify=False),
                    range(clients),
                )
            )
            start = threading.Barrier(clients)

            def one(client: Client) -> dict[str, Any]:
                image = handle_file(picture)
                start.wait()
                begun = time.monotonic()
                job = client.submit(image=image, question=question, max_tokens=TOKENS, api_name="/compare")
                while not (job.outputs() or job.done()):  # Iterating over the job instead would poll it at 1 kHz.
                    time.sleep(0.05)
                told, states, error = time.monotonic() - begun, [], ""
                try:
                    states = job.result(timeout=600)
                except Exception as problem:
                    error = str(problem)
                done = bool(states) and all(state["status"] == "done" for state in states)
                return {"told": told, "done": done, "busy": "Busy" in error, "took": time.monotonic() - begun}

            found = list(pool.map(one, opened))
        answered = [row for row in found if row["done"]]
        rows = [
            {"what": f"of {clients} clients at once, queue of {QUEUE}: answered", "value": len(answered)},
            {"what": "told that the page is busy", "value": sum(row["busy"] for row in found)},
            {"what": "neither", "value": sum(not (row["done"] or row["busy"]) for row in found)},
            {"what": "first word (position or busy), median s", "value": _rounded(_median(found, "told"))},
            {"what": "first word, longest s", "value": _rounded(max(row["told"] for row in found))},
            {"what": "last answer after, s", "value": _rounded(max((row["took"] for row in answered), default=0))},
        ]
        free, memory = [], {}
        for number in range(1, cancels + 1):
            free.append(_cancel(server.url, picture, question))
            if number in (cancels // 2, cancels):
                memory[number] = memory_of(server.process.pid)
        half, whole = memory[cancels // 2], memory[cancels]
        return [
            *rows,
            {
                "what": f"free after each of {cancels} cancelled, median s",
                "value": _rounded(statistics.median(free)),
            },
            {"what": "longest s", "value": _rounded(max(free))},
            {"what": f"RssAnon after {cancels // 2} cancelled, MiB", "value": _rounded(half / MIB)},
            {"what": f"RssAnon after {cancels}, MiB", "value": _rounded(whole / MIB)},
            {"what": "difference, MiB", "value": _rounded((whole - half) / MIB)},
        ]


def _cancel(url: str, picture: Path, question: str) -> float:
    """Leave in the middle of a long answer; gives the seconds until another question is being answered."""
    with httpx.Client(base_url=f"{url}gradio_api/", timeout=60) as client:
        (path,) = client.post("upload", files={"files": (picture.name, picture.read_bytes())}).json()
        image = {"path": path, "meta": {"_type": "gradio.FileData"}}

        def submit(tokens: int) -> str:
            body = {"data": [image, question, tokens, 1.5, 1, 0, "", None]}
            return client.post("call/compare", json=body).json()["event_id"]

        event = submit(1024)
        with client.stream("GET", f"call/compare/{event}") as told:
            next(line for line in told.iter_lines() if '"running"' in line)
        begun = time.monotonic()
        with client.stream("GET", f"call/compare/{submit(1)}") as told:
            lines = told.iter_lines()
            next(line for line in lines if '"running"' in line)
            free = time.monotonic() - begun
            for _ in lines:
                pass
        return free


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
    """Memory of one way after its first answers, in this process."""
    load_columns(["warm=tiny-llava"], say=lambda _: None)  # Memory that any first load takes is not counted.
    before, begun = psutil.Process().memory_info().rss, time.monotonic()
    columns = load_columns(specs, shared_base=shared, say=lambda _: None)
    loaded = time.monotonic() - begun
    _ask(columns, *samples(1)[0])
    taken = psutil.Process().memory_info().rss - before
    return {"way": way, "models": len(columns), "loaded in, s": _rounded(loaded), "memory, MiB": round(taken / MIB)}


def latency(adapters: list[str], merged: list[str], asked: int) -> list[dict[str, Any]]:
    """Medians over columns and questions, and paired ratios to merged copies. All ways answer each question in turn."""
    copies = load_columns(merged, say=lambda _: None)
    shared = load_columns(adapters, shared_base=True, say=lambda _: None)
    ways = {MERGED: copies, f"{MERGED}, again": copies, SHARED: shared}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    order, shuffle = list(ways), random.Random(0)
    for path, question in [*samples(1), *samples(asked)]:
        shuffle.shuffle(order)
        for way in order:
            found[way] += _ask(ways[way], path, question)
    rows = []
    for way, answers in found.items():
        row = {"way": way}
        for key, words in (("first", "first token, ms"), ("each", "each further token, ms")):
            # The first question only warms up and is left out.
            pairs = zip(answers[len(copies) :], found[MERGED][len(copies) :], strict=True)
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


def _median(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def _rounded(value: float) -> float:
    return round(value, 2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
