"""`python -m tests.families.table [NAME …]` takes families down the whole path and prints a table of family x step.

Without names it takes all of them and writes the table into docs/models.md, with the version of transformers.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

from transformers.utils import logging

from .checkpoints import RECIPES
from .path import BROKEN, FAILED, NOT_REACHED, REFUSED, STEPS, Walk

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- written by make families -->", "<!-- end of what make families wrote -->"
TITLES = [title for title, _, _ in STEPS]
SIGNS = {FAILED: "✗", NOT_REACHED: "", REFUSED: "refused", BROKEN: "✗"}


def table(results: dict[str, dict[str, str]]) -> str:
    """The results, family -> step -> what came of it, as Markdown, with what failed below the table."""
    lines = [f"| family | {' | '.join(TITLES)} |", f"|---|{'---|' * len(TITLES)}"]
    for name, steps in results.items():
        cells = [sign(steps[title]) for title in TITLES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    failed = [
        f"- {name}, {title}: {said.removeprefix(FAILED).removeprefix(BROKEN)}"
        for name, steps in results.items()
        for title, said in steps.items()
        if said.startswith((FAILED, BROKEN))
    ]
    return "\n".join([*lines, *(["", "What failed:", "", *failed] if failed else [])])


def sign(said: str) -> str:
    return next((sign for start, sign in SIGNS.items() if said.startswith(start)), said)


def write(results: dict[str, dict[str, str]]) -> None:
    """Put the table between its marks in docs/models.md."""
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{DOCS}: has no marks {BEGIN} and {END}")
    said = f"transformers {version('transformers')}, torch {version('torch')}"
    DOCS.write_text(f"{before}{BEGIN}\n{said}:\n\n{table(results)}\n{END}{after}", encoding="utf-8")


def main(names: list[str]) -> int:
    """Take the families of these names, or all; gives the exit code."""
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names or RECIPES:
            walk = Walk(name, Path(folder) / name)
            results[name] = walk.walk()
            wrong = {title: said for title, said in results[name].items() if said.startswith(FAILED)}
            print(f"{name}: {wrong or 'ok'} ({sum(walk.seconds.values()):.0f} s)", flush=True)
    print(f"\n{table(results)}")
    if not names:
        write(results)
    return int(any(said.startswith(FAILED) for steps in results.values() for said in steps.values()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
