"""Makes the HTML of the sections of "Look inside". Text from files is escaped, and no path on the server is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from mmdora.adapt.plan import Plan
from mmdora.adapter_files.files import OURS, own_plan
from mmdora.config import load_config
from mmdora.demo.columns import SERVED
from mmdora.demo.differences import Differences, Disagreement
from mmdora.demo.pictures import thumbnail
from mmdora.demo.question_sets import Known
from mmdora.evaluate.scoring.scorers import CIDER
from mmdora.evaluate.scoring.significance import MCNEMAR
from mmdora.evaluate.table import ScoreRow, kinds
from mmdora.export.facts import read_facts
from mmdora.html import draw_curves
from mmdora.models.locate import RUN_CONFIG, Location, bundled


def model_card(name: str, path: str, location: Location | None) -> str:
    """The HTML that describes a model: base, plan, data, training and scores, as far as its files tell.

    Args:
        path: path of the model as it was given.
        location: location that `path` stands for; None for a model on a server.

    Raises:
        MmdoraError: if files of the model are damaged.
    """
    if location is None:
        url, _, model = path.removeprefix(SERVED).partition("#")
        facts, plan = {"served by": url, "as": model or "its only model"}, None
    else:
        facts, plan = _adapter_facts(location) if location.adapter else _checkpoint_facts(location)
        facts = {"from": Path(path).name} | facts  # The page must not show where on the server the folder lies.
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    lines = str(plan).splitlines() if plan else []
    notes = [line for line in lines if line.startswith("note:")]
    counted = "\n".join(line for line in lines if line not in notes)
    shown = f'<pre tabindex="0">{escape(counted)}</pre>' if plan else ""
    shown += "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f'<section class="model"><h3>{escape(name)}</h3><dl>{rows}</dl>{shown}</section>'


def _adapter_facts(location: Location) -> tuple[dict[str, str], Plan | None]:
    """Facts and plan of an adapter; facts of its run too, if it is the last adapter of one."""
    assert location.adapter is not None
    facts = {"base": Path(location.base).name}
    plan = own_plan(location.adapter) if (location.adapter / OURS).is_file() else None
    if location.run and location.adapter.name == "adapter":  # A checkpoint has done a part of the run's steps only.
        config = load_config(location.run / RUN_CONFIG)
        training = config.training
        sources = config.data.sources.items()
        facts["data"] = ", ".join(f"{task} {source.train.name}".strip() for task, source in sources) or "not stated"
        rows = training.batch_size * training.accumulation
        length = f"{training.epochs:g} epochs" if training.steps is None else f"{training.steps} steps"
        facts["training"] = f"{length}, {rows} rows a step, lr {training.lr:g}, seed {training.seed}"
    return facts, plan


def _checkpoint_facts(location: Location) -> tuple[dict[str, str], Plan | None]:
    """Facts and plan of a base, or of a checkpoint that `mmdora export` wrote."""
    if location.base in bundled():
        return {"is": "a base that mmdora carries"}, None
    if not Path(location.source).is_dir():
        return {"is": "a checkpoint of the Hugging Face hub"}, None
    told = read_facts(Path(location.source))
    if told is None:
        return {"is": f"a checkpoint; nothing more is known, as it has no {OURS} of `mmdora export`"}, None
    facts = {"base": told.base, "weights": told.dtype}
    if told.methods:
        facts["is"] = f"adapted with {', '.join(told.methods)} and merged"
    if told.run:
        facts["data"] = ", ".join(dict.fromkeys(Path(file).name for file in told.run["data"])) or "not stated"
    return facts | told.shown_scores, told.plan


def curves_section(
    curves: Mapping[str, list[tuple[int, float]]], held_out: Mapping[str, list[tuple[int, float]]]
) -> str:
    """The HTML with training curves.

    Args:
        curves: name of each run -> its points (step, training loss).
        held_out: name of each run that was evaluated meanwhile -> its points (step, loss on held-out rows).
    """
    keys = "".join(
        f'<li><i style="background:var(--c{(index + 1) % 4})"></i>{escape(name)}</li>'
        for index, name in enumerate(curves)
    )
    keys += "<li>dashed: held-out rows</li>" if held_out else ""
    names, what = escape(", ".join(curves)), "Training and held-out loss" if held_out else "Training loss"
    drawn = draw_curves(curves, held_out, width=11.5)
    drawing = f'<div role="img" aria-label="{what} over steps of {names}">{drawn}</div>'
    return f'<section><h2>Training</h2><div class="curves"><ul class="legend">{keys}</ul>{drawing}</div></section>'


def scores_section(title: str, rows: list[ScoreRow]) -> str:
    """The HTML table of scores with one model per line, in percent; CIDEr is multiplied by 100, as in papers."""
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


def differences_section(title: str, names: tuple[str, str], compared: Differences, known: Known) -> str:
    """The HTML that shows how often only one of two models was right, and questions on which they differ most.

    Args:
        known: finds the pictures of the questions; one without a picture on this page can be read, but not opened.
    """
    first, second = names
    parts = []
    if compared.paired:
        counts = (
            (f"{first} right", f"{compared.both:,}", f"{compared.paired.only_first:,}"),
            (f"{first} wrong", f"{compared.paired.only_second:,}", f"{compared.neither:,}"),
        )
        parts.append(wide(table(("", f"{second} right", f"{second} wrong"), list(counts))))
        parts.append(
            f"<p>Both were asked {compared.n:,} questions; right means the full score. A difference this large by "
            f"chance: p = {compared.paired.p:.2g} ({MCNEMAR}).</p>"
        )
    for better, examples in zip(names, (compared.first, compared.second), strict=True):
        if examples:
            parts.append(f"<h3>{escape(better)} scores more</h3>")
            parts.append(_disagreements(names, examples, known))
    if not (compared.first or compared.second):
        parts.append(f"<p>They score the same on every one of {compared.n:,} questions.</p>")
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _disagreements(names: tuple[str, str], examples: Sequence[Disagreement], known: Known) -> str:
    """The HTML table of questions with their pictures; a click on a line opens it in Compare."""
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in ("", "picture", "question", "expected", *names))
    lines = []
    for number, example in enumerate(examples, 1):
        place = known.place(example.id, example.question)
        found = known.row(place) if place else None
        pictures = "".join(f'<img alt="" src="{thumbnail(image)}">' for image in found[1]["images"]) if found else "–"
        label = f"Open question {number} in Compare: {example.question}"
        button = f'<button type="button" aria-label="{escape(label)}">{number}</button>' if found else str(number)
        texts = (example.question, example.expected, *map(_answered, example.answers, example.scores))
        cells = "".join(f'<td dir="auto">{escape(text)}</td>' for text in texts)
        opens = f' data-row="{place}"' if found else ""
        lines.append(f"<tr{opens}><td>{button}</td><td>{pictures}</td>{cells}</tr>")
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="many" tabindex="0"><table>{body}</table></div>'


def _answered(text: str, score: float) -> str:
    return f"{text or '(nothing)'} ({score:.2g})"


def wide(table: str) -> str:
    """Put a table into a frame in which it scrolls (by keyboard too) if it is wider than the page."""
    return f'<div class="wide" tabindex="0">{table}</div>'


def table(heads: tuple[str, ...], body: list[tuple[str, ...]], *, words: bool = False) -> str:
    """The HTML of a table. Columns whose first cell begins with a letter are aligned left; with `words` all are."""
    sides = [' class="word"' if words or cell[:1].isalpha() else "" for cell in next(iter(body), heads)]
    head = "".join(f'<th scope="col"{side}>{escape(cell)}</th>' for side, cell in zip(sides, heads, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{side}>{escape(cell)}</td>" for side, cell in zip(sides, row, strict=True)) + "</tr>"
        for row in body
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _hundredths(value: float | None, sign: str) -> str:
    return "–" if value is None else f"{100 * value:.1f}{sign}"
