"""Content of the tab "Look inside": each model's origin, training, scores and changes, from files. Without Gradio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

from mmdora.adapter_files.files import adapter_folder
from mmdora.analysis import plots
from mmdora.analysis.findings import conclusions, correlations, number, summaries, verdicts
from mmdora.analysis.run import analyze
from mmdora.demo.columns import locate_models
from mmdora.demo.differences import differences
from mmdora.demo.question_sets import Known
from mmdora.demo.sections import curves_section, differences_section, model_card, scores_section, table, wide
from mmdora.errors import MmdoraError
from mmdora.evaluate.output import GALLERY
from mmdora.evaluate.resume import METRICS
from mmdora.evaluate.table import ScoreRow
from mmdora.files import read_json, read_text
from mmdora.html import EVAL_LOSS, LOG, curve, data_uri

DEPTH = 3  # Levels of folders below the results that are searched; deeper levels hold other files, such as checkpoints.
PICTURES = {
    "layers": "Mean change of magnitude (dM) and direction (dD) of each layer's matrices, by modality and run",
    "shares": "Share of each modality in the squared norm of the whole change, by run",
    "scatter": "Change of magnitude over change of direction of every matrix, by run and modality",
}


class Inside:
    """Finds and shows the runs, evaluations and adapters of some models.

    Args:
        models: name -> path, as on the command line.
        results: folder with runs (config.yaml, log.jsonl) and evaluations (metrics.json), at most three levels down.

    Raises:
        MmdoraError: if `results` is no folder.
    """

    def __init__(self, models: Mapping[str, str], results: Path | None = None):
        if results is not None and not results.is_dir():
            raise MmdoraError(f"--results {results}: no such folder; name one with runs and evaluations")
        self.models = dict(models)
        runs = {self._model_of(path.parent): path.parent for path in _files_named(results, LOG)}
        runs |= {name: Path(path) for name, path in models.items() if (Path(path) / LOG).is_file()}
        self.runs = {name: runs[name] for name in self.models if name in runs}
        self.scores: dict[str, dict[str, Path]] = {}  # task -> model -> folder
        scored = {path.parent: self._model_of(path.parent) for path in _files_named(results, METRICS)}
        for name in self.models:
            for folder in (folder for folder, own in scored.items() if own == name):
                task = str(read_json(folder / METRICS, "evaluation's file").get("task", ""))
                self.scores.setdefault(task, {})[name] = folder
        self.locations = locate_models(models)
        self.adapters = {name: run for name, run in self.runs.items() if adapter_folder(run)}
        self.adapters |= {name: Path(models[name]) for name, own in self.locations.items() if own.adapter}

    def pairs(self) -> list[tuple[str, Inside]]:
        """A title for every two models of the page, with an `Inside` of only these two."""
        return [(f"{one} and {two}", self._of(one, two)) for one, two in combinations(self.models, 2)]

    @property
    def galleries(self) -> dict[str, Path]:
        """Name for a menu -> folder with a page of errors: one for each model, and one with all side by side."""
        pages: dict[str, Path] = {}
        for task, folders in self.scores.items():
            together = {folder.parent for folder in folders.values()}
            if len(folders) > 1 and len(together) == 1:
                pages[_titled("side by side", task)] = together.pop()
            pages |= {_titled(name, task): folder for name, folder in folders.items()}
        return {name: folder for name, folder in pages.items() if (folder / GALLERY).is_file()}

    def html(self) -> str:
        """The HTML with models, training curves and scores."""
        cards = "".join(model_card(name, path, self.locations.get(name)) for name, path in self.models.items())
        parts = [f'<section><h2>The models</h2><div class="models">{cards}</div></section>']
        if curves := {name: points for name, run in self.runs.items() if (points := curve(run))}:
            held_out = {name: points for name in curves if (points := curve(self.runs[name], EVAL_LOSS))}
            parts.append(curves_section(curves, held_out))
        for task, folders in self.scores.items():
            if scored := [ScoreRow(name, values) for name, folder in folders.items() if (values := _scores(folder))]:
                parts.append(scores_section(_titled("Evaluation", task), scored))
        return _page(parts)

    def differences(self, known: Known) -> str:
        """The HTML with questions that only one of two models answers well; empty unless there are exactly two models.

        Args:
            known: finds the pictures of the questions.

        Raises:
            MmdoraError: if predictions cannot be read.
        """
        if len(self.models) != 2:
            return ""
        first, second = self.models
        parts = [
            differences_section(_titled("Where they differ", task), (first, second), told, known)
            for task, folders in self.scores.items()
            if first in folders and second in folders and (told := differences(folders[first], folders[second]))
        ]
        return _page(parts) if parts else ""

    def gallery(self, name: Any) -> str:
        """The HTML with wrong answers and their pictures: the page that the evaluation wrote, with scripts disabled."""
        if name not in self.galleries:
            return ""
        page = read_text(self.galleries[name] / GALLERY, "gallery", 32 * 2**20)
        title = f"Wrong answers, {name}"
        return f'<iframe class="gallery" sandbox="" title="{escape(title)}" srcdoc="{escape(page)}"></iframe>'

    def moved(self) -> str:
        """The HTML that shows how far each adapter moved magnitude and direction, by layer (`mmdora analyze`)."""
        rows = analyze(self.adapters, say=lambda _: None)
        measured = correlations(rows)
        drawn = {"layers": plots.layers(rows), "shares": plots.shares(rows), "scatter": plots.scatter(rows, measured)}
        heads = ("run", "modality", "method", "share", "dM", "dD", "rank of the change")
        body = [
            (s.run, s.modality, s.method, f"{s.share:.1%}", *map(number, (s.delta_m, s.delta_d, s.effective_rank)))
            for s in summaries(rows)
        ]
        uris = {name: data_uri(png) for name, png in drawn.items()}
        pictures = "".join(
            f'<section><img alt="{told}" src="{uris[name]}"><p>{told}.</p></section>' for name, told in PICTURES.items()
        )
        lines = "".join(f"<p>{escape(line)}</p>" for line in verdicts(measured))
        told = f"<h2>What the adapters did</h2>{_listed(conclusions(summaries(rows)))}{wide(table(heads, body))}"
        told += f"<h3>Beside the paper's signs</h3>{lines}" if lines else ""
        return _page([f"<section>{told}</section>", pictures])

    def _of(self, *names: str) -> Inside:
        part = copy(self)
        part.models = {name: self.models[name] for name in names}
        part.runs = {name: run for name, run in self.runs.items() if name in names}
        part.scores = {
            task: own
            for task, folders in self.scores.items()
            if (own := {name: folder for name, folder in folders.items() if name in names})
        }
        part.adapters = {name: folder for name, folder in self.adapters.items() if name in names}
        return part

    def _model_of(self, folder: Path) -> str | None:
        """The model of this page that a folder of a run or evaluation belongs to, by name or path; None if to none."""
        name = folder.name.casefold()
        fitting = [own for own in self.models if own.casefold() == name]
        fitting = fitting or [own for own, path in self.models.items() if Path(path).name.casefold() == name]
        return fitting[0] if len(fitting) == 1 else None


def _files_named(results: Path | None, file: str) -> Iterator[Path]:
    for depth in range(DEPTH + 1) if results else ():
        yield from sorted(path for path in results.glob("*/" * depth + file))  # pyright: ignore[reportOptionalMemberAccess]


def _scores(folder: Path) -> dict[str, Any] | None:
    """The numbers of an evaluation; None if its answers are scored by an official server.

    Raises:
        MmdoraError: if the file does not hold the numbers of an evaluation.
    """
    values = read_json(folder / METRICS, "evaluation's file")
    if "overall" not in values:
        return None
    by_type = values.get("by_type")
    parts = [values["overall"], *by_type.values()] if isinstance(by_type, dict) and "metric" in values else [None]
    if not all(isinstance(part, dict) and {"score", "n", "interval95"} <= part.keys() for part in parts):
        raise MmdoraError(f"{folder / METRICS}: not the numbers of an evaluation")
    return values


def _titled(title: str, task: str) -> str:
    return f"{title}: {task}" if task else title


def _listed(lines: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _page(parts: list[str]) -> str:
    return f'<div class="inside">{"".join(parts)}</div>'
