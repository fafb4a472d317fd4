"""The answers as HTML: one card for each column, everything from users and models escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mmdora.demo.compare import Answer

STATUS = {
    "idle": "ready",
    "waiting": "waiting for its turn",
    "running": "answering",
    "done": "done",
    "stopped": "stopped",
    "failed": "failed",
}

TITLE = """<div class="title"><h1>mmdora</h1>
<p>One picture, one question, the same settings: compare what each model answers.</p></div>"""
NOTE = """<p class="note">First token: time from the model's turn to its first token, the picture's preprocessing
included. Tokens/s: after the first token. The models answer one after the other; waiting is not counted.</p>"""
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.page-html .html-container { padding: 0; }
.title h1 { font-size: 1.7rem; font-weight: 650; letter-spacing: -.02em; margin: .4rem 0 .15rem; }
.title p, .note { color: var(--body-text-color-subdued); margin: 0; }
p.note { font-size: .8rem; }
.picture img { width: 100%; height: 100%; object-fit: contain; }
.examples table { display: block; border: 0; padding: 0; }
.examples thead { display: none; }
.examples .table-wrap { border: 0; overflow: visible; }
.examples tbody { display: grid; gap: 8px; grid-template-columns: repeat(auto-fill, minmax(max(145px, 30%), 1fr)); }
.examples tr.tr-body { display: flex; align-items: center; gap: 10px; padding: 6px; cursor: pointer;
  background: var(--block-background-fill); border: 1px solid var(--border-color-primary); border-radius: 10px; }
.examples tr.tr-body:hover { border-color: var(--color-accent); }
.examples tr.tr-body td { padding: 0; border: 0; text-align: left; font-size: .85rem; line-height: 1.3; }
.examples tr.tr-body td .container { width: 48px; height: 48px; border-radius: 6px; }
.answers { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); }
.answer { display: flex; flex-direction: column; min-width: 0; min-height: 190px; overflow: hidden;
  background: var(--block-background-fill); border: 1px solid var(--border-color-primary); border-radius: 12px; }
.answer.running { border-color: var(--color-accent); box-shadow: 0 0 0 1px var(--color-accent); }
.answer header { padding: 12px 16px 10px; border-bottom: 1px solid var(--border-color-primary); }
.answer h2 { display: flex; align-items: center; gap: 8px; margin: 0; font-size: 1.05rem; font-weight: 650;
  color: var(--body-text-color); overflow-wrap: anywhere; }
.answer h2::before { content: ""; flex: none; width: 9px; height: 9px; border-radius: 50%; background: #9ca3af; }
.answer.running h2::before { background: var(--color-accent); animation: pulse 1s ease-in-out infinite alternate; }
.answer.done h2::before { background: #16a34a; }
.answer.stopped h2::before { background: #d97706; }
.answer.failed h2::before { background: #dc2626; }
@keyframes pulse { from { opacity: .35; } }
@media (prefers-reduced-motion: reduce) { .answer.running h2::before { animation: none; } }
.answer header p { margin: 3px 0 0; font-size: .8rem; line-height: 1.35; color: var(--body-text-color-subdued); }
.answer .text { flex: 1; margin: 0; padding: 14px 16px; font-size: 1.15rem; line-height: 1.5; max-height: 420px;
  overflow-y: auto; white-space: pre-wrap; overflow-wrap: anywhere; color: var(--body-text-color); }
.answer .text.faint { font-size: .95rem; color: var(--body-text-color-subdued); }
.answer .error { margin: 0; padding: 0 16px 14px; font-size: .9rem; overflow-wrap: anywhere; color: #dc2626; }
.dark .answer .error { color: #f87171; }
.answer dl { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 0; padding: 10px 16px;
  border-top: 1px solid var(--border-color-primary); font-variant-numeric: tabular-nums; }
.answer dl div { display: flex; flex-direction: column-reverse; }
.answer dt { font-size: .72rem; color: var(--body-text-color-subdued); }
.answer dd { margin: 0; font-size: .92rem; font-weight: 600; color: var(--body-text-color); }
"""


def answers_html(states: Sequence[Answer], kinds: Sequence[str]) -> str:
    """The cards of all columns, of equal width; on a narrow screen one below the other."""
    cards = (_card(state, kind) for state, kind in zip(states, kinds, strict=True))
    return f'<div class="answers" aria-live="polite">{"".join(cards)}</div>'


def _card(state: Answer, kind: str) -> str:
    name = escape(state.name)
    text, faint = (escape(state.text), "") if state.text else (_placeholder(state), " faint")
    error = f'<p class="error" role="alert">{escape(state.error)}</p>' if state.error else ""
    figures = (
        ("first token", "–" if state.first_token_s is None else _seconds(state.first_token_s)),
        ("tokens/s", "–" if state.tokens_per_s is None else f"{state.tokens_per_s:.0f}"),
        ("tokens", str(state.tokens) if state.tokens else "–"),
    )
    rows = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in figures)
    return (
        f'<section class="answer {state.status}" aria-label="{name}: {STATUS[state.status]}">'
        f"<header><h2>{name}</h2><p>{escape(kind)}</p></header>"
        f'<p class="text{faint}">{text}</p>{error}<dl>{rows}</dl></section>'
    )


def _placeholder(state: Answer) -> str:
    shown = {"idle": "The answer appears here.", "waiting": "Waiting for its turn …", "running": "…"}
    done = {"done": "(an empty answer)", "stopped": "Stopped.", "failed": "No answer."}
    return (shown | done)[state.status]


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
