"""Measures the page under load, for `demo.py`: many clients ask at once, and visitors leave during an answer."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from gradio_client import Client, handle_file
from harness import memory_of

from mmdora.data_prep.easy_vqa import samples

QUEUE = 32
"""The most requests that wait in the page's queue: fewer than the clients, so that some are told that it is busy."""
TOKENS = 16
"""Tokens of an answer: enough that a rate can be given, few enough that 50 clients are answered in minutes."""
MIB = 2**20


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

            outcomes = list(pool.map(one, opened))
        answered = [row for row in outcomes if row["done"]]
        rows = [
            {"what": f"of {clients} clients at once, queue of {QUEUE}: answered", "value": len(answered)},
            {"what": "told that the page is busy", "value": sum(row["busy"] for row in outcomes)},
            {"what": "neither", "value": sum(not (row["done"] or row["busy"]) for row in outcomes)},
            {
                "what": "first word (position or busy), median s",
                "value": rounded(statistics.median(row["told"] for row in outcomes)),
            },
            {"what": "first word, longest s", "value": rounded(max(row["told"] for row in outcomes))},
            {"what": "last answer after, s", "value": rounded(max((row["took"] for row in answered), default=0))},
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
                "value": rounded(statistics.median(free)),
            },
            {"what": "longest s", "value": rounded(max(free))},
            {"what": f"RssAnon after {cancels // 2} cancelled, MiB", "value": rounded(half / MIB)},
            {"what": f"RssAnon after {cancels}, MiB", "value": rounded(whole / MIB)},
            {"what": "difference, MiB", "value": rounded((whole - half) / MIB)},
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
                pass  # The stream is read to its end, as a browser does.
        return free


def rounded(value: float) -> float:
    return round(value, 2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
