"""Writes the report of studies as Markdown, from their results alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import log10
from pathlib import Path
from typing import Any

from mmdora.files import write_whole
from mmdora.study.cells import planned
from mmdora.study.design import Study
from mmdora.study.findings import TELLING, Curve, OnTask, PairFinding, curves, done, mean_widths, pairs, visible
from mmdora.study.plots import draw_curves
from mmdora.study.results import Results
from mmdora.study.statistics import Difference
from mmdora.study.tasks import StudyTask

DESIGNS = "configs/study"
HEAD = """# Evidence

This page is written by `mmdora study`, from {results}; nobody edits it.
There are results of {done}, which took {hours:.2f} hours of a CPU core; the designs below name {planned} cells, some of
them twice. What is missing is said in each section, and where too little is there, nothing is concluded. A task counts
where the first arm of a pair scores between 40 and 95% and there are two seeds or more; the others are only shown.
What the bases did not learn in less than a minute of a core was left out: handwritten digits, relations, words, full
captions (`mmdora/study/tasks.py` says how far they came).

How it is measured. Every cell is an ordinary `mmdora train` run of a bundled base with about two million parameters,
which says nothing certain about models with billions. All arms of a study get the same grid of learning rates and the
same seeds. The rate is chosen by the score on a validation split and its score is reported on the test split; no
picture is in two splits. Scores are shares of exactly right answers, in percent. Differences are the second arm minus
the first, on the same questions and seeds, with 95% intervals over seeds and questions (hierarchical bootstrap; tasks
are not drawn, so they are about these tasks). p-values of a study's tasks are corrected for their number (Holm). Where
the interval holds zero, or the corrected p is 0.05 or more, it says *no difference seen*, which does not mean that
there is none: each section says how small a difference its design could see.
"""


def write_report(
    studies: Mapping[Path, Study], tasks: Mapping[str, StudyTask], results: Results, path: Path, source: str
) -> None:
    """Write the report, and its plots to a folder of its name beside it.

    Args:
        studies: file -> design.
        source: what the page names as the file of results.
    """
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    counts = [(done(study, tasks, results), planned(study)) for study in studies.values()]
    hours = sum(line["cpu_seconds"] for line in results.cells.values()) / 3600
    there_are = f"{len(results.cells):,} {'cell' if len(results.cells) == 1 else 'cells'}"
    parts = [HEAD.format(results=source, done=there_are, planned=sum(b for _, b in counts), hours=hours)]
    named = list(dict.fromkeys(name for study in studies.values() for name in study.tasks))
    parts.append("\n".join(_tasks(named, tasks, results)))
    for (file, study), (there, whole) in zip(studies.items(), counts, strict=True):
        found = [curve for curve in curves(study, tasks, results) if len(curve.points) > 1]
        plot = folder / f"{file.stem}.svg"
        if found:
            draw_curves(found, plot)
        picture = f"{folder.name}/{plot.name}" if found else ""
        parts.append("\n".join(_section(file, study, tasks, results, found, picture, there, whole)))
    write_whole(path, "\n".join(parts))


def _tasks(named: Sequence[str], tasks: Mapping[str, StudyTask], results: Results) -> Iterator[str]:
    yield "## Tasks\n"
    yield "| task | what is asked | questions to train on | steps | test questions | base | question only |"
    yield "|---|---|---|---|---|---|---|"
    for name in named:
        task, lines = tasks[name], [line for (_, own), line in sorted(results.tasks.items()) if own == name]
        row = f"| {name} | {task.about} | {lines[0]['train_questions'] if lines else task.rows:,} | {task.steps} |"
        if not lines:
            yield f"{row} not run yet | | |"
            continue
        scores = "; ".join(f"{line['base']} {100 * line['base_score']:.1f}" for line in lines)
        count = sum(lines[0]["questions_per_picture"])
        yield f"{row} {count:,} | {scores} | {100 * lines[0]['question_only']:.1f} |"
    yield "\n*Base* is the base as it is; *question only* gives each question its most frequent training answer.\n"


def _section(
    file: Path,
    study: Study,
    tasks: Mapping[str, StudyTask],
    results: Results,
    found: Sequence[Curve],
    picture: str,
    there: int,
    whole: int,
) -> Iterator[str]:
    yield f"## {study.title}\n"
    yield f"{study.question.strip()} (`mmdora study {DESIGNS}/{file.name}`)\n"
    one, every = visible(study, tasks)
    yield (
        f"{there} of {whole} cells are done. Computed beforehand: with {len(study.seeds)} seeds, "
        f"{min(tasks[name].pictures for name in study.tasks)} test pictures a task, {study.expected.differing:.0%} of "
        f"questions answered differently and a spread of {100 * study.expected.seed_spread:.1f} points over seeds "
        f"(both assumed), the whole design sees a difference of {100 * one:.1f} points on one task and of "
        f"{100 * every:.1f} in the mean "
        "over its tasks in four of five cases.\n"
    )
    for shared in (False, True) if study.shared_rate is not None else (False,):
        at = f"Both at the rate {study.shared_rate:g}" if shared else "Each at its own best rate"
        found_pairs = pairs(study, tasks, results, shared=shared)
        if not any(pair.tasks for pair in found_pairs):
            yield f"**{at}.** Nothing can be said yet: no task has results of both arms of a pair.\n"
            continue
        for pair in found_pairs:
            yield from _pair(pair, at, results)
    if picture:
        yield f"![Test score over learning rate, a line for each arm]({picture})\n"
        yield from _at_each_rate(study, found)
        yield from _widths(study, found)


def _pair(pair: PairFinding, at: str, results: Results) -> Iterator[str]:
    yield f"**{at}: {pair.second} minus {pair.first}.** {sentence(pair)}\n"
    if not pair.tasks:
        return
    yield f"| task | {pair.first} (rate) | {pair.second} (rate) | seeds | difference, points | p (Holm) | |"
    yield "|---|---|---|---|---|---|---|"
    for one in pair.tasks:
        yield _row(one, pair)
    if pair.mean is not None:
        yield f"| **mean** | | | {pair.mean.seeds} | **{_points(pair.mean)}** | {pair.mean.p:.3f} | |"
    yield ""
    costs = [(arm, own) for arm, own in ((pair.first, pair.tasks[0].first), (pair.second, pair.tasks[0].second))]
    seconds = [sum(getattr(one, side).cpu_seconds for one in pair.tasks) for side in ("first", "second")]
    yield (
        f"{costs[0][0]} trains {costs[0][1].trainable:,} parameters, {costs[1][0]} {costs[1][1].trainable:,}; the "
        f"cells of {costs[1][0]} took {seconds[1] / seconds[0]:.2f} times the CPU time of those of {costs[0][0]}"
        f"{_memory(pair)}.{_forgotten(pair, results)}\n"
    )


def _memory(pair: PairFinding) -> str:
    peaks = [[getattr(one, side).peak_bytes for one in pair.tasks] for side in ("first", "second")]
    if any(peak is None for own in peaks for peak in own):
        return ""
    first, second = (sum(own) / len(own) / 2**20 for own in peaks)
    return f", and training {second:,.0f} instead of {first:,.0f} MiB at its peak, libraries included"


def _forgotten(pair: PairFinding, results: Results) -> str:
    """How much of the base's own questions is still answered right, in the mean over tasks."""
    scores: list[list[Any]] = [[results.tasks[one.base, one.task].get("retained") for one in pair.tasks]]
    scores += [[getattr(one, side).retained for one in pair.tasks] for side in ("first", "second")]
    if any(score is None for own in scores for score in own):
        return ""
    base, first, second = (100 * sum(own) / len(own) for own in scores)
    return (
        f" Of the questions that the base was made with, it answers {base:.1f}% right, after {pair.first} {first:.1f}% "
        f"and after {pair.second} {second:.1f}% (mean over tasks)."
    )


def _row(one: OnTask, pair: PairFinding) -> str:
    said = {"second ahead": f"{pair.second} ahead", "first ahead": f"{pair.first} ahead"}.get(one.verdict, one.verdict)
    return (
        f"| {one.task} | {100 * one.first.score:.1f} ({one.first.rate:g}) | {100 * one.second.score:.1f} "
        f"({one.second.rate:g}) | {one.difference.seeds} | {_points(one.difference)} | {one.p:.3f} | {said} |"
    )


def sentence(pair: PairFinding) -> str:
    """What a pair's results say, in one sentence."""
    if not pair.tasks:
        return "Nothing can be said yet: no task has all rates of both arms."
    if pair.mean is None:
        return (
            f"Nothing is concluded yet: no task has two seeds of both arms and a score of {pair.first} between "
            f"{TELLING[0]:.0%} and {TELLING[1]:.0%}."
        )
    won, tied, lost = pair.counts
    count = sum(one.tells for one in pair.tasks)
    mean = f"{_points(pair.mean)} points in the mean over {count} {'task' if count == 1 else 'tasks'}"
    said = f"No difference seen: {mean}"
    if pair.mean.seen:
        said = f"{pair.second if pair.mean.value > 0 else pair.first} is ahead: {mean}"
    return f"{said}; {pair.second} ahead on {won}, no difference seen on {tied}, {pair.first} ahead on {lost}."


def _at_each_rate(study: Study, found: Sequence[Curve]) -> Iterator[str]:
    rates = study.rates.values
    yield "At each rate: the test score, and behind the stroke what is left of the base's own answers.\n"
    yield f"| task | arm | seeds | {' | '.join(f'{rate:g}' for rate in rates)} |"
    yield "|---|---|---|" + "---|" * len(rates)
    for curve in found:
        scores = {rate: f"{100 * score:.1f}" for rate, score in curve.points}
        for (rate, _), retained in zip(curve.points, curve.retained, strict=True):
            scores[rate] += "" if retained is None else f" / {100 * retained:.1f}"
        yield f"| {curve.task} | {curve.arm} | {curve.seeds} | {' | '.join(scores.get(rate, '') for rate in rates)} |"
    yield ""


def _widths(study: Study, found: Sequence[Curve]) -> Iterator[str]:
    widths = mean_widths(study, found)
    if widths:
        said = ", ".join(f"{arm} {width:.2f}" for arm, width in widths.items())
        yield (
            "How far the rate may lie off: the range around the best rate whose scores lie within one point of it is "
            f"this many factors of ten wide, in the mean over tasks: {said}. The grid's own step is "
            f"{_step(study):.2f}.\n"
        )


def _step(study: Study) -> float:
    rates = study.rates
    return log10(rates.high / rates.low) / max(1, rates.count - 1)


def _points(difference: Difference) -> str:
    low, high = difference.interval
    return f"{100 * difference.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
