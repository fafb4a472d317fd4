"""Makes the HTML of the page. All text from users and models is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

from mmdora.demo.results import shown
from mmdora.demo.turns import Answer, AnswerSettings, Turn
from mmdora.demo.words import Piece, marked
from mmdora.evaluate.scoring.scores import Score

CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
JS = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
NOTE = """<p class="note">First token: time from the model's turn to its first token, the picture's preprocessing
included. Tokens/s: after the first token, of answers of five tokens and more. Models on one device answer one after the
other, in an order drawn anew for each question; waiting is not counted. <mark>Marked</mark> words differ between two
answers.</p>"""
STATUS = {
    "idle": "ready",
    "queued": "in the queue",
    "waiting": "waiting for its turn",
    "running": "answering",
    "done": "done",
    "stopped": "stopped",
    "failed": "failed",
}
PLACEHOLDER = {
    "idle": "The answer appears here.",
    "waiting": "Waiting for its turn …",
    "running": "…",
    "done": "(an empty answer)",
    "stopped": "Stopped.",
    "failed": "No answer.",
}


def title_html(*, pictures: bool) -> str:
    """The HTML of the page's title.

    Args:
        pictures: whether any of the models reads pictures.
    """
    same = "One picture, one conversation" if pictures else "One conversation"
    return (
        f'<div class="title"><h1>mmdora</h1>\n<p>{same}, the same settings: compare what each model answers.</p></div>'
    )


def idle_html(kinds: Mapping[str, str]) -> str:
    """The HTML of the cards before the first question.

    Args:
        kinds: name of each model -> a line that describes the model.
    """
    cards = "".join(_card(Answer(name), kind, None) for name, kind in kinds.items())
    return f'<div class="answers">{cards}</div>'


def conversation_html(
    turns: Sequence[Turn], kinds: Mapping[str, str], pair: tuple[str, str] | None, last: int | None = None
) -> str:
    """The HTML of turns, the newest first. The answers stand in equal columns, or on a narrow screen one below another.

    Args:
        kinds: name of each model -> a line that describes the model.
        pair: names of the two models between whose answers words are marked; None if there is only one model.
        last: number of the last of these turns, or 0 for a conversation that has not begun; by default the turns are
            the whole conversation.
    """
    if last == 0:
        return idle_html(kinds)
    first = 1 if last is None else last - len(turns) + 1
    numbered = list(enumerate(turns, first))
    return "".join(_turn(turn, number, kinds, pair) for number, turn in reversed(numbered))


def tally_html(tally: Mapping[str, Score], counts: Mapping[str, int]) -> str:
    """The HTML of the votes of blind comparisons, with the 95% interval of each share; empty before the first vote."""
    if not sum(counts.values()):
        return ""
    rows = "".join(_bar(name, score, counts.get(name, 0)) for name, score in tally.items())
    ties, bad = counts.get("tie", 0), counts.get("all bad", 0)
    return (
        f'<section class="tally" aria-label="Votes"><h2>Votes</h2><table><tbody>{rows}</tbody></table>'
        f"<p>Share of the votes for a model, with its 95% interval; ties ({ties}) and all bad ({bad}) not counted.</p>"
        "</section>"
    )


def _bar(name: str, score: Score, votes: int) -> str:
    assert score.interval is not None
    low, high = (100 * bound for bound in score.interval)
    spot = f'<b style="left:{100 * score.value:.1f}%"></b>'
    return (
        f'<tr><th scope="row">{escape(name)}</th><td class="count">{votes}</td><td class="bar"><div>'
        f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i>{spot}</div></td>'
        f'<td class="share">{score.value:.0%} <span>{low:.0f} to {high:.0f}%</span></td></tr>'
    )


def _turn(turn: Turn, number: int, kinds: Mapping[str, str], pair: tuple[str, str] | None) -> str:
    answers = shown(turn)
    places = _places(turn, pair)
    pieces: list[list[Piece] | None] = [None] * len(answers)
    same = ""
    if places and turn.over:
        texts = [answers[place].text for place in places]
        for place, own in zip(places, _marked(texts[0], texts[1]), strict=True):
            pieces[place] = own
        if texts[0] and texts[0] == texts[1]:
            same = (
                f'<p class="same">{" and ".join(escape(answers[place].name) for place in places)}: the same answer</p>'
            )
    cards = "".join(
        _card(answer, "" if turn.hidden else kinds[answer.name], own, hidden=turn.hidden)
        for answer, own in zip(answers, pieces, strict=True)
    )
    busy = "false" if turn.over else "true"
    vote = f'<p class="vote">Your vote: <strong>{escape(turn.vote)}</strong></p>' if turn.vote else ""
    return (
        f'<section class="turn" aria-label="Question {number}"><header><span class="number">{number}</span>'
        f'<div><p class="asked">{escape(turn.question)}</p>{_settings(turn.settings)}</div></header>'
        f'<div class="answers" aria-live="polite" aria-busy="{busy}">{cards}</div>{same}{vote}</section>'
    )


def _places(turn: Turn, pair: tuple[str, str] | None) -> tuple[int, int] | None:
    """The places, from the left, of the two answers that are compared.

    None in a hidden turn of more than two models: marks would tell which of its answers are the pair's.
    """
    if pair is None or (turn.hidden and len(turn.answers) > 2):
        return None
    names = [turn.answers[index].name for index in turn.order]
    first, second = sorted(names.index(name) for name in pair)
    return first, second


@lru_cache(maxsize=128)  # Every question draws the earlier turns again.
def _marked(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    return marked(first, second)


def _settings(settings: AnswerSettings) -> str:
    """The settings that differ from the defaults, as text."""
    told = []
    if settings.temperature:
        told += [f"temperature {settings.temperature:g}", f"top-p {settings.top_p:g}", f"seed {settings.seed}"]
    if settings.system_prompt:
        told.append(f"system prompt: {settings.system_prompt}")
    return f'<p class="set">{escape(" · ".join(told))}</p>' if told else ""


def _card(answer: Answer, kind: str, pieces: Sequence[Piece] | None, *, hidden: bool = False) -> str:
    name = escape(answer.name)
    faint = "" if answer.text else " faint"
    text = escape(answer.text) or _placeholder(answer)
    if answer.text and pieces is not None:
        text = "".join(f"<mark>{escape(piece)}</mark>" if differs else escape(piece) for piece, differs in pieces)
    error = f'<p class="error" role="alert">{escape(answer.error)}</p>' if answer.error else ""
    figures = (
        ("first token", "–" if answer.first_token_s is None else _seconds(answer.first_token_s)),
        ("tokens/s", "–" if answer.tokens_per_s is None else f"{answer.tokens_per_s:.0f}"),
        ("tokens", str(answer.tokens) if answer.tokens else "–"),
    )
    rows = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in figures)
    below = '<p class="veil">Name and speed show after your vote.</p>' if hidden else f"<dl>{rows}</dl>"
    return (
        f'<section class="answer {answer.status}" aria-label="{name}: {STATUS[answer.status]}">'
        f"<header><h2>{name}</h2>{f'<p>{escape(kind)}</p>' if kind else ''}</header>"
        f'<p class="text{faint}" tabindex="0">{text}</p>{error}{below}</section>'
    )


def _placeholder(answer: Answer) -> str:
    if answer.status == "queued":
        return f"Busy: position {answer.position} in the queue."
    return PLACEHOLDER[answer.status]


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
