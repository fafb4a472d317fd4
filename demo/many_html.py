"""Makes the HTML and the files of a set of answered questions. All text from users and models is escaped."""

from __future__ import annotations

import csv
import io
import json
from html import escape
from itertools import permutations
from typing import Any

from mmdora.demo.many import Round
from mmdora.demo.pictures import thumbnail
from mmdora.demo.sections import scores_section, table, wide
from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.significance import Comparison
from mmdora.evaluate.table import ScoreRow
from mmdora.records.row import Row

ALL, DIFFER = "all", "differ"


def choices(names: list[str]) -> list[tuple[str, str]]:
    """(label, value) of each way to filter the table; a value is `0>1` where model 0 is right and model 1 is wrong."""
    pairs = [
        (f"{names[a]} right, {names[b]} wrong", f"{a}>{b}") for a, b in permutations(reversed(range(len(names))), 2)
    ]
    differ = [("answers that differ", DIFFER)] if len(names) > 1 else []
    wrong = [(f"{name} wrong", f">{index}") for index, name in enumerate(names)]
    return [("all questions", ALL), *pairs, *differ, *wrong]


def progress_html(done: int, total: int, left_s: float | None, waiting: int = 0) -> str:
    """The HTML of a bar that tells how many questions are answered, and how long the rest takes."""
    told = f"{done:,} of {total:,} questions answered"
    if waiting:
        told += f"; other visitors ask first, position {waiting} in the queue"
    elif left_s is not None and done < total:
        told += f"; about {_rounded(left_s)} left"
    return (
        f'<div class="progress"><progress max="{total}" value="{done}" aria-label="Questions answered"></progress>'
        f'<p role="status">{told}</p></div>'
    )


def _rounded(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(seconds, 1):.0f} s"


def scores_html(answered: Round) -> str:
    """The HTML with the score of each model and the paired difference of every two, or why there are none."""
    parts = [f"<p>{escape(name)} failed: {escape(told)}</p>" for name, told in answered.errors.items()]
    if answered.done:
        try:
            compared = answered.compared
            rows = [ScoreRow(name, scores.to_dict()) for name, scores in compared.scores.items()]
            title = f"{answered.name}: {rows[0].scores['metric']}"
            parts.append(scores_section(title, rows))
            if compared.pairs:
                parts.append(_pairs(compared.pairs))
        except MmdoraError as error:
            parts.append(f"<p>{escape(str(error))}</p>")
    return f'<div class="inside">{"".join(parts)}</div>'


def _pairs(pairs: dict[tuple[str, str], Comparison]) -> str:
    body = []
    for (first, second), found in pairs.items():
        low, high = (f"{100 * bound:+.1f}" for bound in found.interval)
        sure = low[0] == high[0] and found.interval[0] * found.interval[1] > 0
        told = (second if found.difference > 0 else first) + " is better" if sure else "cannot be told apart"
        points = f"{100 * found.difference:+.1f}"
        body.append((f"{second} minus {first}", points, f"{low} to {high}", f"{found.p:.2g}", told))
    heads = ("on the same questions", "points", "95% interval", f"p ({next(iter(pairs.values())).test})", "so")
    return f"<section>{wide(table(heads, body))}</section>"


def table_html(answered: Round) -> str:
    """The HTML table with a line for each question: its picture, question, expected answer, and every answer."""
    names = [column.name for column in answered.columns]
    marks = answered.marks()
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in ("", "picture", "question", "expected", *names))
    lines = []
    for index, asked in enumerate(answered.asked):
        cells, right, wrong, texts = [], [], [], []
        for place, name in enumerate(names):
            text = answered.texts[name][index] if index < len(answered.texts[name]) else None
            score = marks.get(name, {}).get(index)
            if score is not None:
                (right if score >= 1 else wrong).append(str(place))
            texts.append(text)
            cells.append(_answer(text, score))
        data = f'data-row="{index}" data-right="{" ".join(right)}" data-wrong="{" ".join(wrong)}"'
        differs = ' data-differ="1"' if len(set(texts)) > 1 else ""
        button = f'<button type="button" aria-label="Open question {index + 1} in Compare">{index + 1}</button>'
        lines.append(
            f"<tr {data}{differs}><td>{button}</td><td>{_pictures(answered.rows[index])}</td>"
            f"{_text(asked['question'])}{_text(asked['answer'])}{''.join(cells)}</tr>"
        )
    return (
        f'<div class="many" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
        '<p class="none" hidden>No question is like this.</p></div>'
    )


def _text(text: str) -> str:
    return f'<td dir="auto">{escape(text)}</td>'


def _answer(text: str | None, score: float | None) -> str:
    if text is None:
        return "<td>–</td>"
    shown = escape(text) or "(nothing)"
    if score is None:
        return f"<td>{shown}</td>"
    if 0 < score < 1:
        return f'<td class="wrong"><span title="partly right">{score:.2g}</span> {shown}</td>'
    kind, sign = ("right", "✓") if score >= 1 else ("wrong", "✗")
    return f'<td class="{kind}"><span role="img" aria-label="{kind}">{sign}</span> {shown}</td>'


def _pictures(row: Row) -> str:
    return "".join(f'<img alt="" src="{thumbnail(image)}">' for image in row["images"])


def as_json(answered: Round) -> str:
    """The questions, answers and scores as JSON."""
    marks = answered.marks()
    rows = [
        {
            "id": asked["id"],
            "question": asked["question"],
            "expected": asked["answer"],
            "images": asked["images"],
            "answers": {name: texts[index] for name, texts in answered.texts.items() if index < len(texts)},
            "scores": {name: own[index] for name, own in marks.items() if index in own},
        }
        for index, asked in enumerate(answered.asked)
    ]
    compared: dict[str, Any] = answered.compared.to_dict() if marks else {}
    facts = {"set": answered.name, "task": answered.task.name, "failed": answered.errors}
    return json.dumps(facts | {"comparison": compared, "rows": rows}, indent=2, ensure_ascii=False)


def as_csv(answered: Round) -> str:
    """The questions as CSV, with a column for the answer and the score of each model."""
    marks, text = answered.marks(), io.StringIO()
    writer = csv.writer(text)
    names = list(answered.texts)
    heads = [head for name in names for head in (name, f"{name} score")]
    writer.writerow(["id", "images", "question", "expected", *heads])
    for index, asked in enumerate(answered.asked):
        cells: list[Any] = []
        for name in names:
            texts = answered.texts[name]
            cells += [texts[index] if index < len(texts) else "", marks.get(name, {}).get(index, "")]
        writer.writerow([asked["id"], " ".join(asked["images"]), asked["question"], asked["answer"], *cells])
    return text.getvalue()
