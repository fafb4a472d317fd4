"""Makes the HTML of the page. All text from users and models is escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from html import escape
from pathlib import Path

from mmdora.demo.kept import Listed
from mmdora.demo.pictures import thumbnail
from mmdora.demo.results import shown
from mmdora.demo.turns import Answer, AnswerSettings, Turn
from mmdora.demo.words import Piece, marked
from mmdora.evaluate.scoring.scores import Score
from mmdora.predict.answers import Token
from mmdora.records.images import FileRef

CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
JS = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
NOTE = """<p class="note">First token: time from the model's turn to its first token, the picture's preprocessing
included. Tokens/s: after the first token, of answers of five tokens and more. Models on one device answer one after the
other, in an order drawn anew for each question; waiting is not counted. Point at one of the first tokens for what else
the model would have said there, before temperature; the fainter its line, the surer the model was. <mark>Marked</mark>
words differ between two answers.</p>"""
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


def examples_html(examples: Iterable[tuple[Path | FileRef, str]]) -> str:
    """The HTML of the examples: a button for each, with its picture and question; empty without examples."""
    tiles = "".join(
        f'<li><button type="button" data-example="{number}"><img alt="" src="{thumbnail(picture)}">'
        f'<span dir="auto">{escape(text)}</span></button></li>'
        for number, (picture, text) in enumerate(examples, 1)
    )
    return f'<p id="examples">Examples</p><ul aria-labelledby="examples">{tiles}</ul>' if tiles else ""


def earlier_html(conversations: Sequence[Listed]) -> str:
    """The HTML of a visitor's earlier conversations, as links."""
    if not conversations:
        return ""
    lines = "".join(
        f'<li><a href="?c={own.name}" dir="auto">{escape(own.title)}</a> '
        f"<time>{datetime.fromtimestamp(own.time, UTC):%Y-%m-%d %H:%M} UTC</time></li>"
        for own in conversations
    )
    return f"<details><summary>Earlier conversations ({len(conversations)})</summary><ul>{lines}</ul></details>"


def conversation_html(
    turns: Sequence[Turn],
    kinds: Mapping[str, str],
    pair: tuple[str, str] | None,
    last: int | None = None,
    draw: Callable[[Answer], str] = lambda answer: "",
) -> str:
    """The HTML of turns, the newest first. The answers stand in equal columns, or on a narrow screen one below another.

    Args:
        kinds: name of each model -> a line that describes the model.
        pair: names of the two models between whose answers words are marked; None if there is only one model.
        last: number of the last of these turns, or 0 for a conversation that has not begun; by default the turns are
            the whole conversation.
        draw: gives HTML to show below the text of an answer that has ended.
    """
    if last == 0:
        return idle_html(kinds)
    first = 1 if last is None else last - len(turns) + 1
    numbered = list(enumerate(turns, first))
    return "".join(_turn(turn, number, kinds, pair, draw) for number, turn in reversed(numbered))


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


def _turn(
    turn: Turn,
    number: int,
    kinds: Mapping[str, str],
    pair: tuple[str, str] | None,
    draw: Callable[[Answer], str],
) -> str:
    answers = shown(turn)
    drawn = [draw(turn.answers[index]) if turn.over else "" for index in turn.order]
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
        elif told := parting(answers[places[0]], answers[places[1]]):
            same = f'<p class="same">{escape(told)}</p>'
    cards = "".join(
        _card(answer, "" if turn.hidden else kinds.get(answer.name, ""), own, picture, hidden=turn.hidden)
        for answer, own, picture in zip(answers, pieces, drawn, strict=True)
    )
    busy = "false" if turn.over else "true"
    vote = f'<p class="vote">Your vote: <strong>{escape(turn.vote)}</strong></p>' if turn.vote else ""
    return (
        f'<section class="turn" aria-label="Question {number}"><header><span class="number">{number}</span>'
        f'<div><p class="asked" dir="auto">{escape(turn.question)}</p>{_settings(turn.settings)}</div></header>'
        f'<div class="answers" aria-live="polite" aria-busy="{busy}">{cards}</div>{same}{vote}</section>'
    )


def parting(first: Answer, second: Answer) -> str:
    """A sentence about the first token at which two answers part; empty if it is none of the first tokens."""
    for place, (one, two) in enumerate(zip(first.first_tokens, second.first_tokens, strict=False), 1):
        if one.text != two.text:
            sides = (_side(first.name, one, two.text), _side(second.name, two, one.text))
            return f"They part at token {place}: {'; '.join(sides)}."
    return ""


def _side(name: str, own: Token, other: str) -> str:
    """What a model said where two answers part, and how likely it found the other's token."""
    p = dict(own.likeliest).get(other)
    share = f"under {own.likeliest[-1][1]:.1%}" if p is None else f"{p:.1%}"
    return f"{name} said {_quoted(own.text)} ({own.p:.1%}; {_quoted(other)} {share})"


def _quoted(token: str) -> str:
    return f"“{token.strip() or token}”" if token else "(end)"


def _tokens(answer: Answer) -> str:
    """The first tokens, each of which tells the likeliest tokens at its place when it is pointed at or focused."""
    if not answer.first_tokens:
        return ""
    told = []
    for token in answer.first_tokens:
        others = ", ".join(f"{_quoted(text)} {p:.1%}" for text, p in token.likeliest)
        said = f"{_quoted(token.text)} {token.p:.1%}; likeliest here: {others}"
        shade = f"{round(100 * (1 - token.p))}%"
        told.append(
            f'<span tabindex="0" role="img" title="{escape(said)}" aria-label="{escape(said)}" '
            f'style="--doubt:{shade}">{escape(token.text.strip()) or "·"}</span>'
        )
    return f'<p class="tokens" aria-label="First tokens">{"".join(told)}</p>'


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
    if settings.strength != 1:
        told.append(f"adapters × {settings.strength:g}")
    if settings.system_prompt:
        told.append(f"system prompt: {settings.system_prompt}")
    return f'<p class="set">{escape(" · ".join(told))}</p>' if told else ""


def _card(answer: Answer, kind: str, pieces: Sequence[Piece] | None, picture: str = "", *, hidden: bool = False) -> str:
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
    speed = f"{_tokens(answer)}<dl>{rows}</dl>"
    below = '<p class="veil">Name and speed show after your vote.</p>' if hidden else speed
    return (
        f'<section class="answer {answer.status}" aria-label="{name}: {STATUS[answer.status]}">'
        f"<header><h2>{name}</h2>{f'<p>{escape(kind)}</p>' if kind else ''}</header>"
        f'<p class="text{faint}" tabindex="0" dir="auto">{text}</p>{picture}{error}{below}</section>'
    )


def _placeholder(answer: Answer) -> str:
    if answer.status == "queued":
        return f"Busy: position {answer.position} in the queue."
    return PLACEHOLDER[answer.status]


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
