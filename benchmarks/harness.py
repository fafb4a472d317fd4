"""Functions for all benchmarks: facts about the machine, and results as a table, Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


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
