"""Runs `mmdora COMMAND` in several processes that meet over gloo. They are forked, so that torch is imported once."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from tiny_run import exit_code, forked

PATIENCE = 120  # Seconds after which processes are taken to wait for one another forever; a run takes much less.

FSDP2 = Path(__file__).parents[1] / "configs" / "accelerate" / "8_gpus_fsdp2.yaml"


@cache
def of_the_launcher(config: Path) -> dict[str, str]:
    """What `accelerate launch` with a committed config puts into the environment of each process."""
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(config), "train"]))
    return prepare_multi_gpu_env(args)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launched(
    command: list[str], folder: Path, count: int = 2, before: Callable[[int], None] = lambda index: None
) -> list[int]:
    """Start the processes, each after `before(index)`; gives their ids. Each writes stderr to FOLDER/INDEX.stderr."""
    port = free_port()

    def prepare(index: int) -> Callable[[], None]:
        def here() -> None:
            os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(count)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ["OMP_NUM_THREADS"] = "1"
            before(index)

        return here

    folder.mkdir(parents=True, exist_ok=True)
    return [forked(command, folder / f"{index}.stderr", prepare(index)) for index in range(count)]


def finished(children: list[int]) -> list[int]:
    """The exit codes, in order. Processes that wait for one another forever are killed, which is a failure."""
    deadline, codes = time.monotonic() + PATIENCE, {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes and (found := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(found[1])
        if time.monotonic() > deadline:
            for child in children:
                if child not in codes:
                    os.kill(child, 9)
                    codes[child] = exit_code(child)
        time.sleep(0.02)
    return [codes[child] for child in children]
