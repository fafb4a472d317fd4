"""A real vLLM on this machine's CPU, in an environment of its own, for as long as a block lasts."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

SECONDS = 1800
"""The most that a start may take: 35 to 70 seconds on two idle cores, and many times that on busy ones."""
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "2",
    "VLLM_HOST_IP": "127.0.0.1",
}


@contextmanager
def engine(python: Path, model: Path | str, name: str, *options: str) -> Iterator[str]:
    """Serve a checkpoint in fp32 until the end of the block; gives the address that `mmdora verify` takes.

    Args:
        python: of the environment that has vLLM.
        name: under which the model is served.
        options: more options of the server.

    Raises:
        RuntimeError: the server ends, or does not answer in time; the last lines of its log are in the message.
    """
    port = _free_port()
    # `vllm serve` of the wheel for CPUs looks for a package that has another name; the module works.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-num-seqs", "4", "--max-model-len", "1024", *options]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        # The environment of the caller stays out: PYTHONPATH would show the engine our packages.
        kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "TMPDIR")}
        process = subprocess.Popen(command, env=kept | OFFLINE, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(process, port, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: IO[str]) -> None:
    until = time.monotonic() + SECONDS
    with httpx.Client(trust_env=False) as client:
        while process.poll() is None and time.monotonic() < until:
            try:
                if client.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(1)
    log.seek(0)
    lines = log.read().splitlines()
    raise RuntimeError("vLLM does not answer; its log ends:\n" + "\n".join(lines[-40:]))


def _free_port() -> int:
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        return there.getsockname()[1]
