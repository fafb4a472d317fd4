"""What "Look inside" shows, as HTML: everything from files escaped, no folder of the server told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from mmdora.adapt.plan import Plan
from mmdora.adapter_files.files import OURS
from mmdora.config import load_config
from mmdora.demo.columns import SERVED
from mmdora.demo.differences import Differences
from mmdora.evaluate.scoring.scorers import CIDER
from mmdora.evaluate.scoring.significance import MCNEMAR
from mmdora.evaluate.table import Row, kinds
from mmdora.files import read_json
from mmdora.html import draw_curves
from mmdora.models.load import adapter_folder, base_of, resolve

CONFIG = "config.yaml"


def model_card(name: str, path: str) -> str:
    """What a model is: base, plan, data, training, scores, as far as its files tell."""
    facts: dict[str, str] = {"from": Path(path).name}  # never where the server keeps it
    plan = ""
    if path.startswith(SERVED):
        url, _, model = path.removeprefix(SERVED).partition("#")
        facts = {"served by": url, "as": model or "its only model"}
    elif folder := adapter_folder(path):
        facts["base"] = base_of(folder)
        if (folder / OURS).is_file():
            plan = str(Plan.from_dict(read_json(folder / OURS, "adapter's file")["plan"]))
        if (Path(path) / CONFIG).is_file():
            config = load_config(Path(path) / CONFIG)
            training = config.training
            sources = config.data.sources.items()
            facts["data"] = ", ".join(f"{task} {source.train.name}".strip() for task, source in sources) or "not stated"
            rows = training.batch_size * training.accumulation
            facts["training"] = f"{training.steps} steps of {rows} rows, lr {training.lr:g}, seed {training.seed}"
    else:
        told, plan = _card(Path(resolve(path)) / "README.md")
        facts |= told
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    lines = [line for line in plan.splitlines() if not line.startswith("note:")]
    shown = f'<pre tabindex="0">{escape(chr(10).join(lines))}</pre>' if plan else ""
    shown += "".join(f"<p>{escape(line)}</p>" for line in plan.splitlines() if line not in lines)
    return f'<section class="model"><h3>{escape(name)}</h3><dl>{rows}</dl>{shown}</section>'


def _card(path: Path) -> tuple[dict[str, str], str]:
    """Facts and plan of a checkpoint's model card, as `mmdora export` writes it; of another card its first lines."""
    if not path.is_file():
        return {}, ""
    text = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE))
    about = re.sub(r"^#.*\n", "", text.partition("\n## ")[0].strip()).strip()
    sentence = re.match(r".*?\.(?=\s|$)", " ".join(about.split()))
    facts = {"is": sentence[0].replace("`", "")} if sentence else {}
    if data := re.search(r"^Data: (.+?)\.?$", sections.get("Training", ""), flags=re.MULTILINE):
        names = (Path(name.strip(" `")).name for name in data[1].split(","))
        facts["data"] = ", ".join(dict.fromkeys(names))
    for key, value in re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", sections.get("Scores", ""), flags=re.MULTILINE):
        if key.strip():
            facts[key.strip()] = value.strip()
    plan = re.search(r"```\n(.*?)```", sections.get("What was adapted", ""), flags=re.DOTALL)
    return facts, plan[1].rstrip() if plan else ""


def curves_section(curves: Mapping[str, list[tuple[int, float]]]) -> str:
    """Training losses: run -> (step, loss)."""
    keys = "".join(
        f'<li><i style="background:var(--c{(index + 1) % 4})"></i>{escape(name)}</li>'
        for index, name in enumerate(curves)
    )
    names = escape(", ".join(curves))
    drawing = f'<div role="img" aria-label="Training loss over steps of {names}">{draw_curves(curves)}</div>'
    return f'<section><h2>Training</h2><div class="curves"><ul class="legend">{keys}</ul>{drawing}</div></section>'


def scores_section(title: str, rows: list[Row]) -> str:
    """A model per line, in percent; CIDEr times 100, as papers print it."""
    types = kinds(rows)
    heads = ("model", "overall", "95% interval", *types, "questions")
    body = []
    for row in rows:
        overall = row.scores["overall"]
        interval = " – ".join(f"{100 * bound:.1f}" for bound in overall["interval95"] or ()) or "–"
        sign = "" if row.scores["metric"] == CIDER else "%"
        cells = [_hundredths(row.accuracy(kind), sign) for kind in (None, *types)]
        body.append((row.name, cells[0], interval, *cells[1:], f"{overall['n']:,}"))
    return f"<section><h2>{escape(title)}</h2>{wide(table(heads, body))}</section>"


def differences_section(title: str, names: tuple[str, str], found: Differences) -> str:
    """How often each of two was right alone, and questions on which they are furthest apart."""
    first, second = names
    parts = []
    if found.paired:
        counts = (
            (f"{first} right", f"{found.both:,}", f"{found.paired.only_first:,}"),
            (f"{first} wrong", f"{found.paired.only_second:,}", f"{found.neither:,}"),
        )
        parts.append(wide(table(("", f"{second} right", f"{second} wrong"), list(counts))))
        parts.append(
            f"<p>Both were asked {found.n:,} questions; right means the full score. A difference this large by chance: "
            f"p = {found.paired.p:.2g} ({MCNEMAR}).</p>"
        )
    for better, examples in zip(names, (found.first, found.second), strict=True):
        if examples:
            lines = [(e.question, e.expected, *map(_answered, e.answers, e.scores)) for e in examples]
            parts.append(f"<h3>{escape(better)} scores more</h3>")
            parts.append(wide(table(("question", "expected", first, second), lines, words=True)))
    if not (found.first or found.second):
        parts.append(f"<p>They score the same on every one of {found.n:,} questions.</p>")
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _answered(text: str, score: float) -> str:
    return f"{text or '(nothing)'} ({score:.2g})"


def wide(table: str) -> str:
    """What may be wider than the page scrolls by itself, by keyboard too."""
    return f'<div class="wide" tabindex="0">{table}</div>'


def table(heads: tuple[str, ...], body: list[tuple[str, ...]], *, words: bool = False) -> str:
    """A column that begins with a letter stands to the left, as every column does of `words`."""
    sides = [' class="word"' if words or cell[:1].isalpha() else "" for cell in next(iter(body), heads)]
    head = "".join(f'<th scope="col"{side}>{escape(cell)}</th>' for side, cell in zip(sides, heads, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{side}>{escape(cell)}</td>" for side, cell in zip(sides, row, strict=True)) + "</tr>"
        for row in body
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _hundredths(value: float | None, sign: str) -> str:
    return "–" if value is None else f"{100 * value:.1f}{sign}"
