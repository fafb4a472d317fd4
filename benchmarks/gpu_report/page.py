"""The page `gpu.md`: the machine, what became of each stage, and the stages' tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness import markdown

FACTS = "machine and versions"
"""The table of the stage `toolchain` that stands at the head of the page, in one line."""


def page(title: str, results: Sequence[dict[str, Any]]) -> str:
    """The page as Markdown.

    Args:
        title: the command that made it.
        results: of the stages so far, as they are in their files.
    """
    lines = ["# The first hour on a GPU", "", f"`{title}`", ""]
    if "--small" in title.split():
        lines += ["**Small forms on a CPU: they show that the program works, and their numbers mean nothing.**", ""]
    facts = [row for result in results for row in result["tables"].get(FACTS, [])]
    if facts:
        lines += ["; ".join(f"{row['what']} {row['value']}" for row in facts), ""]
    stages = [{"stage": r["title"], "result": _cell(r["status"]), "seconds": r["seconds"]} for r in results]
    lines += [*markdown(stages), ""]
    for result in results:
        tables = {name: rows for name, rows in result["tables"].items() if name != FACTS}
        if not tables and not result["notes"]:
            continue
        lines += [f"## {result['title']}", ""]
        for name, rows in tables.items():
            lines += [f"### {name}", "", *markdown([{k: _cell(v) for k, v in row.items()} for row in rows]), ""]
        lines += [f"- {note}" for note in result["notes"]] + ([""] if result["notes"] else [])
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
