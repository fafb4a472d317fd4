"""Runs the steps of the quickstart, and reuses the results of steps that are complete."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from mmdora.files import sha256
from mmdora.outputs.written import Written


@dataclass
class Steps:
    """Runs steps, reports their progress, and remembers which of them are complete.

    A complete step writes `folder/TITLE.json` with a hash of its inputs, its result and its duration in seconds. The
    step is run again if its inputs have changed, or if a file that it wrote is gone.
    """

    folder: Path
    count: int
    console: Console
    timing: list[tuple[str, str]] = field(default_factory=list)

    def run(
        self,
        number: int,
        title: str,
        made_from: Mapping[str, Any],
        leaves: Iterable[Path],
        work: Callable[[], Any],
    ) -> Any:
        """Do `work`, or reuse its earlier result.

        Args:
            number: number of the step, for the line that is printed.
            title: name of the step.
            made_from: the inputs of the step, as plain JSON values.
            leaves: files that the step writes.
            work: function that does the step; it returns plain JSON values.
        """
        marker, written = self.folder / f"{title.replace(' ', '-')}.json", Written(self.folder)
        written.check(marker.name)
        key = sha256(json.dumps(made_from, sort_keys=True).encode())
        before = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
        self.console.print(f"[bold cyan]{number}/{self.count}[/] [bold]{title}[/]", end=" ")
        if before.get("key") == key and all(path.is_file() for path in leaves):
            took = duration(before["seconds"])
            self.console.print(f"[green]reused[/], took {took}", highlight=False)
            self.timing.append((title, f"{took} (reused)"))
            return before["result"]
        written.remove(marker.name)
        self.console.print("…")
        begun = time.monotonic()
        result = work()
        seconds = time.monotonic() - begun
        written.write_json(marker.name, {"key": key, "result": result, "seconds": seconds})
        self.console.print(f"    [green]done[/] in {duration(seconds)}", highlight=False)
        self.timing.append((title, duration(seconds)))
        return result


def duration(seconds: float) -> str:
    """Seconds as `0.4 s`, `12 s` or `4 min 2 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
