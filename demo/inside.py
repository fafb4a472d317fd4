"""The tab "Look inside": what each model is, how it was trained, scored and changed. Reads files only; no Gradio."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from mmdora.adapters import OURS
from mmdora.analysis import plots
from mmdora.analysis.findings import correlations, number, summaries, verdicts
from mmdora.analysis.run import analyze
from mmdora.config import load_config
from mmdora.demo.columns import SERVED
from mmdora.errors import MmdoraError
from mmdora.evaluate.resume import METRICS
from mmdora.evaluate.table import Row, kinds
from mmdora.files import read_json, read_text
from mmdora.models.load import adapter_folder, base_of, resolve
from mmdora.plan import Plan
from mmdora.report import draw_curves

LOG, CONFIG, ERRORS = "log.jsonl", "config.yaml", "errors.html"
DEPTH = 3  # folders below the results, in which runs and evaluations are looked for
PICTURES = {
    "layers": "Mean change of magnitude (dM) and direction (dD) of each layer's matrices, by modality and run",
    "shares": "Share of each modality in the squared norm of the whole change, by run",
    "scatter": "Change of magnitude over change of direction of every matrix, by run and modality",
}


class Inside:
    """What there is to see of these models.

    Args:
        models: name -> path, as on the command line.
        results: folder with runs (config.yaml, log.jsonl) and evaluations (metrics.json), at most three levels down.

    Raises:
        MmdoraError: `results` is no folder.
    """

    def __init__(self, models: Mapping[str, str], results: Path | None = None):
        if results is not None and not results.is_dir():
            raise MmdoraError(f"--results {results}: no such folder; name one with runs and evaluations")
        self.models = dict(models)
        self.runs = {path.parent.name: path.parent for path in _found(results, LOG)}
        self.runs |= {name: Path(path) for name, path in models.items() if (Path(path) / LOG).is_file()}
        self.scores: dict[str, dict[str, Path]] = {}  # task -> model -> folder, the models of the page first
        scored = [path.parent for path in _found(results, METRICS)]
        for folder in sorted(scored, key=lambda folder: folder.name not in models):
            task = str(read_json(folder / METRICS, "evaluation's file").get("task", ""))
            self.scores.setdefault(task, {})[folder.name] = folder
        self.galleries = {
            f"{name}, {task}" if len(self.scores) > 1 else name: folder
            for task, found in self.scores.items()
            for name, folder in found.items()
            if (folder / ERRORS).is_file()
        }
        columns = {name: path for name, path in models.items() if not path.startswith(SERVED)}
        folders = {name: path for name, path in {**self.runs, **columns}.items() if adapter_folder(path)}
        self.adapters = {name: Path(path) for name, path in folders.items()}

    def html(self) -> str:
        """Models, training curves and scores."""
        cards = "".join(_model(name, path) for name, path in self.models.items())
        parts = [f'<section><h2>The models</h2><div class="models">{cards}</div></section>']
        if curves := {name: points for name, run in self.runs.items() if (points := curve(run))}:
            parts.append(_curves(curves))
        for task, found in self.scores.items():
            if scored := [Row(name, values) for name, folder in found.items() if (values := _scores(folder))]:
                parts.append(_table(f"Evaluation: {task}" if task else "Evaluation", scored))
        return f'<div class="inside">{"".join(parts)}</div>'

    def gallery(self, name: Any) -> str:
        """What a model got wrong, with pictures: the page that the evaluation wrote, with scripts off."""
        if name not in self.galleries:
            return ""
        page = read_text(self.galleries[name] / ERRORS, "gallery", 32 * 2**20)
        title = f"Questions that {name} answers wrongly"
        return f'<iframe class="gallery" sandbox="" title="{escape(title)}" srcdoc="{escape(page)}"></iframe>'

    def moved(self) -> str:
        """By modality and layer, how far each adapter moved magnitude and direction (`mmdora analyze`)."""
        rows = analyze({name: path for name, path in self.adapters.items()}, say=lambda _: None)
        found = correlations(rows)
        drawn = {"layers": plots.layers(rows), "shares": plots.shares(rows), "scatter": plots.scatter(rows, found)}
        heads = ("run", "modality", "method", "share", "dM", "dD", "rank of the change")
        body = [
            (s.run, s.modality, s.method, f"{s.share:.1%}", *map(number, (s.delta_m, s.delta_d, s.effective_rank)))
            for s in summaries(rows)
        ]
        uris = {name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in drawn.items()}
        pictures = "".join(
            f'<section><img alt="{told}" src="{uris[name]}"><p>{told}.</p></section>' for name, told in PICTURES.items()
        )
        lines = "".join(f"<p>{escape(line)}</p>" for line in verdicts(found))
        return (
            f'<div class="inside"><section><h2>What the adapters did</h2><div class="wide">{_rows(heads, body)}</div>'
            f"{lines}</section>{pictures}</div>"
        )


def curve(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of a run folder's log."""
    entries = [json.loads(line) for line in read_text(run / LOG, "log", 256 * 2**20).splitlines() if line]
    return [(entry["step"], entry["loss"]) for entry in entries if entry.get("loss")]


def _found(results: Path | None, file: str) -> Iterator[Path]:
    for depth in range(DEPTH + 1) if results else ():
        yield from sorted(path for path in results.glob("*/" * depth + file))  # pyright: ignore[reportOptionalMemberAccess]


def _model(name: str, path: str) -> str:
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
    table = [line for line in plan.splitlines() if not line.startswith("note:")]
    shown = f"<pre>{escape(chr(10).join(table))}</pre>" if plan else ""
    shown += "".join(f"<p>{escape(line)}</p>" for line in plan.splitlines() if line not in table)
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


def _curves(curves: Mapping[str, list[tuple[int, float]]]) -> str:
    keys = "".join(
        f'<li><i style="background:var(--c{(index + 1) % 4})"></i>{escape(name)}</li>'
        for index, name in enumerate(curves)
    )
    names = escape(", ".join(curves))
    drawing = f'<div role="img" aria-label="Training loss over steps of {names}">{draw_curves(curves)}</div>'
    return f'<section><h2>Training</h2><div class="curves"><ul class="legend">{keys}</ul>{drawing}</div></section>'


def _scores(folder: Path) -> dict[str, Any] | None:
    """None where a server scores."""
    values = read_json(folder / METRICS, "evaluation's file")
    return values if "overall" in values else None


def _table(title: str, rows: list[Row]) -> str:
    types = kinds(rows)
    heads = ("model", "overall", "95% interval", *types, "questions")
    body = []
    for row in rows:
        overall = row.scores["overall"]
        interval = " – ".join(f"{100 * bound:.1f}" for bound in overall["interval95"] or ()) or "–"
        cells = [_percent(row.accuracy()), interval]
        body.append((row.name, *cells, *(_percent(row.accuracy(kind)) for kind in types), f"{overall['n']:,}"))
    return f'<section><h2>{escape(title)}</h2><div class="wide">{_rows(heads, body)}</div></section>'


def _rows(heads: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    sides = [' class="word"' if cell[:1].isalpha() else "" for cell in next(iter(body), heads)]
    head = "".join(f'<th scope="col"{side}>{escape(cell)}</th>' for side, cell in zip(sides, heads, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{side}>{escape(cell)}</td>" for side, cell in zip(sides, row, strict=True)) + "</tr>"
        for row in body
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"
