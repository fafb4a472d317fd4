"""`python -m tests.families.zoo [NAME ...]` tries every architecture of the registry and writes docs/zoo.md."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import version
from pathlib import Path

from transformers.utils import logging

from .check import ALL, FailedError, check, peft_works, takes
from .small import ARCHITECTURES, NOT_BUILT, build

NOWHERE = "not built"
DOCS = Path(__file__).parents[3] / "docs" / "zoo.md"


def tried(name: str) -> dict[str, str]:
    """The cells of an architecture: adapted layers of each part, what was compared, mmdora's and PEFT's verdict."""
    if name in NOT_BUILT:
        return {"mmdora": NOWHERE, "why": NOT_BUILT[name]}
    try:
        model = build(name)
    except Exception as error:
        return {"mmdora": NOWHERE, "why": _line(error)}
    row = {"compared": takes(model)}
    try:
        row |= {part: str(count) for part, count in check(model).items()} | {"mmdora": "ok"}
    except Exception as error:
        row |= {"mmdora": "✗", "why": _line(error)}
    try:
        peft_works(model)
        row["PEFT"] = "ok"
    except Exception as error:
        row |= {"PEFT": "✗", "PEFT's": _line(error)}
    return row


def _line(error: Exception) -> str:
    said = " ".join(str(error).split())[:200].replace("|", "/")
    return said if isinstance(error, FailedError) else f"{type(error).__name__}: {said}"


ABOUT = """\
# Every architecture

`make zoo` wrote this page. It builds every architecture of transformers' image-text-to-text registry with random
parameters, a few thousand of most, and adapts its parts with DoRA: each alone, then all together. Each adapted layer
starts as the base's, gets gradients, and gives the same merged as after saving and loading; taken off, it leaves the
base's tensors. "Compared" says for which inputs the whole model was compared, too. PEFT's column is DoRA on
`all-linear`: it can be made, and gives the same merged. Numbers are adapted layers.
"""


def page(rows: dict[str, dict[str, str]]) -> str:
    """The results of the architectures as Markdown."""
    columns = ("vision", "projector", "language", ALL, "compared", "mmdora", "PEFT")
    built = [row for row in rows.values() if row["mmdora"] != NOWHERE]
    ours, theirs = (sum(row.get(who) == "ok" for row in built) for who in ("mmdora", "PEFT"))
    versions = f"transformers {version('transformers')}, peft {version('peft')}"
    counts = f"{len(rows)} of {len(ARCHITECTURES)} architectures were tried, and {len(built)} built; "
    counts += f"mmdora adapts {ours} of these, and PEFT {theirs}"
    lines = [ABOUT, f"{versions}: {counts}.", "", f"| architecture | {' | '.join(columns)} |"]
    lines.append(f"|---|{'---|' * len(columns)}")
    lines += [f"| {name} | {' | '.join(row.get(key, '') for key in columns)} |" for name, row in rows.items()]
    for title, key in (("Not built, or not adapted by mmdora", "why"), ("Not adapted by PEFT", "PEFT's")):
        said = [f"- {name}: {row[key]}" for name, row in rows.items() if key in row]
        lines += ["", f"{title}:", "", *said] if said else []
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> int:
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rows = {}
    for name in names or ARCHITECTURES:
        rows[name] = tried(name)
        print(name, rows[name], flush=True)
    if not names:
        DOCS.write_text(page(rows), encoding="utf-8")
    return int(any(row["mmdora"] == "✗" for row in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
