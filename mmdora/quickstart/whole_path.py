"""The whole path of the quickstart: each step, from the base to the page, is one method of `Quickstart`."""

from __future__ import annotations

import json
import time
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from mmdora.adapter_files.files import OURS
from mmdora.demo.access import Access
from mmdora.env import collect
from mmdora.evaluate.resume import read_predictions
from mmdora.evaluate.scoring.metrics import majority_baseline
from mmdora.evaluate.table import scores_table
from mmdora.files import sha256
from mmdora.html import curve
from mmdora.layers.dequantize import sizes
from mmdora.models.load import load
from mmdora.outputs.written import Written
from mmdora.quickstart.families import EASY_VQA, METHODS, Family, QuickTask
from mmdora.quickstart.findings import BASELINE, TaskOutcome
from mmdora.quickstart.report import Report, write_report
from mmdora.quickstart.steps import Steps, duration
from mmdora.quickstart.work import adapter_file, evaluated, exported, run_config, trained
from mmdora.records.reader import read_records
from mmdora.records.row import Row
from mmdora.version import __version__

HOST, REPORT = "127.0.0.1", "report.html"
QUICK_LIMIT = 500  # Questions of each task that the short form evaluates on.


class Quickstart:
    """The steps of a quickstart in their order; each needs the ones before it. A family's only task has the name ""."""

    def __init__(self, family: Family, out: Path, overrides: list[str], limit: int | None, quick: bool):
        self.family, self.out, self.quick, self.console = family, out, quick, Console()
        self.limit = QUICK_LIMIT if quick and limit is None else limit
        overrides = [*(family.quick if quick else []), *overrides]
        self.steps = Steps(out / "steps", 7, self.console)
        self.configs = {name: run_config(family, family.configs[name], out, overrides) for name in METHODS}
        self.runs = {name: config.training.output for name, config in self.configs.items()}
        self.exports = {name: out / "export" / name.lower() for name in METHODS}
        self.base_name = self.configs["LoRA"].model.base
        self.roots = {task: out / "data" / task for task in family.tasks}
        self.scores: dict[str, dict[str, Any]] = {task: {} for task in family.tasks}
        self.size, self.parity = 0, dict[str, str]()

    @cached_property
    def digests(self) -> dict[str, str]:
        """Name of the base or of a run -> SHA-256 of the weights of the base, or of the run's adapter."""
        return {name: sha256(adapter_file(run)) for name, run in self.runs.items()} | self._base_digest

    @cached_property
    def made_from(self) -> dict[str, dict[str, str]]:
        """Task -> digests of its data."""
        splits = ("train", "test")
        return {task: {split: sha256(root / f"{split}.jsonl") for split in splits} for task, root in self.roots.items()}

    @cached_property
    def questions(self) -> dict[str, list[Row]]:
        held_out = {task: read_records(root / "test.jsonl") for task, root in self.roots.items()}
        return {
            task: [records[i] for i in range(min(self.limit or len(records), len(records)))]
            for task, records in held_out.items()
        }

    def base(self) -> None:
        model, _ = load(self.base_name)
        weights = b"".join(parameter.detach().float().cpu().numpy().tobytes() for parameter in model.parameters())
        self._base_digest = {"base": sha256(weights)}
        self.size = sum(sizes(model).values())
        self.console.print(
            f"[bold cyan]1/7[/] [bold]base[/] {self.base_name}, {self.size:,} parameters", highlight=False
        )

    def data(self) -> None:
        made_from = {"easy-vqa": version("easy-vqa"), "mmdora": __version__}
        for name, task in self.family.tasks.items():
            root = self.roots[name]
            leaves = (root / "train.jsonl", root / "test.jsonl")
            self.steps.run(2, f"data {name}".strip(), made_from, leaves, lambda t=task, r=root: t.prepare(r))
        self.steps.planned = self._planned()

    def train(self) -> None:
        for name, config in self.configs.items():
            trained_on = {task: made["train"] for task, made in self.made_from.items()}
            made_from = {"config": config.to_dict(), "train": trained_on} | self._base_digest
            run = self.runs[name]
            leaves = (run / "complete.json", adapter_file(run))
            fresh = not (run / "config.yaml").is_file()
            self.steps.run(3, f"train {name}", made_from, leaves, lambda c=config: trained(c, self._say), fresh=fresh)

    def evaluate(self) -> None:
        for name, task in self.family.tasks.items():
            split = self.made_from[name] | {"questions": len(self.questions[name]), "task": task.task}
            if task.heading == EASY_VQA:
                self.scores[name][BASELINE] = self.steps.run(
                    4, f"evaluate {BASELINE}", split, (), lambda n=name: self._majority(n)
                )
            for model, source in ({"base": self.base_name} | self.runs).items():
                folder = self.out / "eval" / name / model
                self.scores[name][model] = self.steps.run(
                    4,
                    f"evaluate {model} {name}".strip(),
                    split | {"weights": self.digests[model], "base": self.digests["base"]},
                    (folder / "predictions.jsonl", folder / "metrics.json"),
                    lambda s=source, n=name, f=folder: evaluated(
                        s, self.questions[n], self.family.tasks[n].task, f, adapted=s != self.base_name
                    ),
                    fresh=not folder.exists(),
                )

    def export(self) -> None:
        for name, folder in self.exports.items():
            shown = {
                f"{task.heading}, {len(self.questions[key]):,} questions": _with_interval(self.scores[key][name])
                for key, task in self.family.tasks.items()
            }
            self.parity[name] = self.steps.run(
                5,
                f"export {name}",
                {"weights": self.digests[name], "base": self.digests["base"], "scores": shown},
                (folder / "config.json", folder / OURS),  # A large base's weights are several files.
                lambda r=self.runs[name], f=folder, s=shown: exported(r, f, s, self._indented),
            )
            self.console.print(f"    {self.parity[name]}", highlight=False)

    def report(self, begun: float) -> Path:
        self.console.print("[bold cyan]6/7[/] [bold]report[/]")
        outcomes = [self._outcome(name, task) for name, task in self.family.tasks.items()]
        tables = {outcome.task.heading: outcome.table() for outcome in outcomes}
        lines = [line for outcome in outcomes for line in outcome.lines()]
        lines.append("One seed and one setting: another seed may turn a small difference round.")
        sizes = {task.heading: len(self.questions[name]) for name, task in self.family.tasks.items()}
        counts = ", ".join(f"{size:,} of {heading}" for heading, size in sizes.items())
        extent = "the whole test splits" if self.limit is None else f"a rehearsal on the first {self.limit:,} questions"
        if self.quick:
            extent += " after a short training (--quick)"
        report = Report(
            title=self.family.title,
            lead=f"Questions: {counts} ({extent}), answered by greedy generation. "
            "The two runs differ in the method only: same targets, ranks, steps, seed and data.",
            verdict=lines,
            tables=tables,
            curves={name: curve(run) for name, run in self.runs.items()},
            galleries={title: shown for outcome in outcomes for title, shown in outcome.galleries().items()},
            parity=self.parity,
            plans={name: (run / "plan.txt").read_text(encoding="utf-8") for name, run in self.runs.items()},
            timing=[*self.steps.timing, ("this time, in all", duration(time.monotonic() - begun))],
            facts=self._facts(),
            commands=[
                f"mmdora demo {' '.join(self._columns)}",
                *(
                    f"mmdora eval {' '.join(self._columns)} --task {task.task} --data {self.roots[name] / 'test.jsonl'}"
                    for name, task in self.family.tasks.items()
                ),
            ],
        )
        page = self.out / REPORT
        Written(self.out).write(REPORT, lambda path: write_report(report, path))
        for heading, rows in tables.items():
            self.console.print(scores_table(rows, f"{heading}: {rows[0].scores['metric']}"))
        for line in lines:
            self.console.print(line, highlight=False)
        return page

    def page(self, port: int) -> None:
        from mmdora.demo.server import serve  # Gradio takes seconds to import.

        self.console.print("[bold cyan]7/7[/] [bold]page[/]")
        serve(self._columns, Access(host=HOST, port=port), results=self.out)

    def _planned(self) -> dict[str, float]:
        """The seconds of the steps after the data, by title, on two idle cores."""
        pace = self.family.pace
        if pace is None:
            return {}
        planned = {f"train {name}": pace.step * (config.training.steps or 0) for name, config in self.configs.items()}
        for task, rows in self.questions.items():
            for model in ("base", *METHODS):
                planned[f"evaluate {model} {task}".strip()] = pace.other + pace.question * len(rows)
        return planned | {f"export {name}": pace.other for name in METHODS}

    @property
    def _columns(self) -> list[str]:
        return [f"base={self.base_name}", *(f"{name}={folder}" for name, folder in self.exports.items())]

    def _outcome(self, name: str, task: QuickTask) -> TaskOutcome:
        predictions = {model: self._predictions(model, name) for model in ("base", *METHODS)}
        return TaskOutcome(task, self.scores[name], predictions, self.questions[name])

    def _predictions(self, model: str, task: str) -> list[dict[str, Any]]:
        """The answers of a model, with the fields that the scorers need."""
        kept = read_predictions(self.out / "eval" / task / model)
        return [row | {"meta": record["meta"]} for row, record in zip(kept, self.questions[task], strict=True)]

    def _majority(self, task: str) -> dict[str, Any]:
        return majority_baseline(read_records(self.roots[task] / "train.jsonl"), self.questions[task]).to_dict()

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False)

    def _indented(self, line: str) -> None:
        self._say(f"    {line}")

    def _facts(self) -> dict[str, str]:
        training = self.configs["LoRA"].training
        done = json.loads((self.runs["LoRA"] / "complete.json").read_text(encoding="utf-8"))
        versions = collect()
        return {
            "base": f"{self.base_name}, {self.size:,} parameters",
            "training": f"{training.steps} steps of {training.batch_size * training.accumulation} rows, "
            f"lr {training.lr:g}, seed {training.seed}",
            "trained on": f"{done['device']}, {done['threads']} threads",
            "data": f"easy-VQA {version('easy-vqa')}; licences: {', '.join(self.family.licences)}",
        } | {name: versions[name] for name in ("mmdora", "python", "torch", "transformers")}


def _with_interval(scores: dict[str, Any]) -> str:
    """A score for the model card."""
    low, high = scores["overall"]["interval95"]
    return f"{scores['overall']['score']:.1%} (95% interval {low:.1%} to {high:.1%})"
