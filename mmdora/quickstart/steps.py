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
    planned: dict[str, float] = field(default_factory=dict)  # title -> seconds; steps that have passed are taken out
    _measured: tuple[float, float] = (0.0, 0.0)  # seconds that steps took, and seconds that were planned for them

    def run(
        self,
        number: int,
        title: str,
        made_from: Mapping[str, Any],
        leaves: Iterable[Path],
        work: Callable[[], Any],
        *,
        fresh: bool = True,
    ) -> Any:
        """Do `work`, or reuse its earlier result.

        Args:
            number: number of the step, for the line that is printed.
            title: name of the step.
            made_from: the inputs of the step, as plain JSON values.
            leaves: files that the step writes.
            work: function that does the step; it returns plain JSON values.
            fresh: whether nothing of the step is there yet. Only then does its time tell how fast this machine is.
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
            self.planned.pop(title, None)
            return before["result"]
        written.remove(marker.name)
        self.console.print(f"…{self._left()}", highlight=False)
        begun = time.monotonic()
        result = work()
        seconds = time.monotonic() - begun
        planned = self.planned.pop(title, 0.0)
        if fresh and planned:
            self._measured = (self._measured[0] + seconds, self._measured[1] + planned)
        written.write_json(marker.name, {"key": key, "result": result, "seconds": seconds})
        self.console.print(f"    [green]done[/] in {duration(seconds)}", highlight=False)
        self.timing.append((title, duration(seconds)))
        return result

    def _left(self) -> str:
        """How long the steps that are planned take yet, at the pace of those that were done here."""
        took, planned = self._measured
        seconds = sum(self.planned.values()) * (took / planned if planned else 1.0)
        return f" (about {duration(max(10.0, round(seconds, -1)))} left)" if self.planned else ""


def duration(seconds: float) -> str:
    """Seconds as `0.4 s`, `12 s` or `4 min 2 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
