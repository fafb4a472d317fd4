"""Functions for all benchmarks: facts about the machine, and results as a table, Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
EVERY = 0.05
"""Seconds between two readings of a process's memory, which are short beside the merge of a shard."""


def machine() -> dict[str, str]:
    """Facts about processor, memory, device and versions, for the head of a result."""
    facts = {"date": date.today().isoformat(), "cpu": f"{os.cpu_count()} cores, {_processor()}"}
    facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    facts["python"] = platform.python_version()
    for package in ("torch", "transformers", "peft", "datasets"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def memory_of(pid: int | str = "self") -> int:
    """RssAnon of a process in bytes: its memory without mapped files (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no RssAnon")


class Run(NamedTuple):
    """The time and memory of one process."""

    wall: float  # seconds
    cpu: float  # seconds, user and system
    anonymous: int  # bytes without mapped files, the largest that was seen
    resident: int  # bytes with the pages of mapped files, the largest
    said: str  # what it printed


def measured(command: list[str]) -> Run:
    """Run a command to its end and measure it.

    Raises:
        SystemExit: if it failed; its own message is printed.
    """
    begun, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            try:
                peak = max(peak, memory_of(process.pid))
            except OSError:  # The process has just ended.
                continue
            time.sleep(EVERY)
        wall = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read()}")
        log.seek(0)
        said = log.read()
    return Run(wall, usage.ru_utime + usage.ru_stime, peak, usage.ru_maxrss * 1024, said)


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows of equal keys as a table."""
    table = Table(title=title, title_justify="left")
    for index, key in enumerate(rows[0]):
        table.add_column(key, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=None if os.isatty(1) else 160).print(table)


def write(name: str, command: str, tables: dict[str, list[dict[str, Any]]], notes: str = "") -> Path:
    """Write `results/NAME.json` and `results/NAME.md`; return the latter."""
    RESULTS.mkdir(exist_ok=True)
    facts = machine()
    result = {"command": command, "machine": facts, "tables": tables}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {name}", "", f"`{command}`", "", "; ".join(f"{key} {value}" for key, value in facts.items()), ""]
    for title, rows in tables.items():
        lines += [f"## {title}", "", *markdown(rows), ""]
    if notes:
        lines += [notes, ""]
    path = RESULTS / f"{name}.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of equal keys as the lines of a Markdown table."""
    cells = [list(rows[0]), ["---"] + ["---:"] * (len(rows[0]) - 1), *([str(v) for v in row.values()] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]
