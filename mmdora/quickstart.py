"""`mmdora quickstart`: the whole path on real data, one method per step."""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from mmdora import __version__
from mmdora.config import RunConfig, load_config
from mmdora.data.records import Record, read_records
from mmdora.data_prep import easy_vqa
from mmdora.env import collect
from mmdora.errors import MmdoraError
from mmdora.evaluate.metrics import majority_baseline
from mmdora.evaluate.resume import read_predictions
from mmdora.evaluate.run import evaluate
from mmdora.evaluate.table import Row, scores_table
from mmdora.export import export
from mmdora.injectors import merge
from mmdora.models.load import load
from mmdora.quickstart_report import BASELINE, curve, galleries, verdict
from mmdora.report import Report, write_report
from mmdora.steps import Steps, duration, sha256
from mmdora.train import train

CONFIGS = Path(__file__).parent / "configs" / "tiny"
METHODS = {"LoRA": "lora", "DoRA": "dora"}
HOST = "127.0.0.1"
TASK = "easy-vqa"


def quickstart(out: Path, *, overrides: Iterable[str] = (), limit: int | None = None, port: int | None = 7860) -> Path:
    """Prepare, train, evaluate, export, report, and open the page. What is complete is reused.

    Args:
        out: folder for everything that is made.
        overrides: config overrides for both runs, as for `mmdora train`.
        limit: evaluate on the first questions only.
        port: of the page; None leaves the page out.

    Returns:
        The report, `out/report.html`.
    """
    begun = time.monotonic()
    if port is not None:
        _check_port(port)
    disable_progress_bar()  # of loading 113 tensors, between our own bars
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # a process trains on one GPU, and would refuse several
    run = Quickstart(out, list(overrides), limit)
    run.base()
    run.data()
    run.train()
    run.evaluate()
    run.export()
    page = run.report(begun)
    run.console.print(f"\nfinished in {duration(time.monotonic() - begun)}: {page}", highlight=False)
    if port is not None:
        run.page(port)
    return page


class Quickstart:
    """The steps in their order; each needs those before it."""

    def __init__(self, out: Path, overrides: list[str], limit: int | None):
        self.out, self.limit, self.console = out, limit, Console()
        self.steps = Steps(out / "steps", 7, self.console)
        self.configs = {name: _config(file, out, overrides) for name, file in METHODS.items()}
        self.runs = {name: config.training.output for name, config in self.configs.items()}
        self.exports = {name: out / "export" / file for name, file in METHODS.items()}
        self.base_name = self.configs["LoRA"].model.base
        self.root = out / "data"
        self.files = {split: self.root / f"{split}.jsonl" for split in ("train", "test")}
        self.size, self.scores, self.parity = 0, dict[str, Any](), dict[str, str]()

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of the weights that the base and the runs consist of, and of the data."""
        weights = {name: sha256(_adapter(run)) for name, run in self.runs.items()}
        return weights | self._base_digest | {split: sha256(path) for split, path in self.files.items()}

    @cached_property
    def questions(self) -> list[Record]:
        records = read_records(self.files["test"])
        return [records[i] for i in range(min(self.limit or len(records), len(records)))]

    def base(self) -> None:
        model, _ = load(self.base_name)
        weights = b"".join(parameter.detach().float().cpu().numpy().tobytes() for parameter in model.parameters())
        self._base_digest = {"base": sha256(weights)}
        self.size = sum(parameter.numel() for parameter in model.parameters())
        self.console.print(
            f"[bold cyan]1/7[/] [bold]base[/] {self.base_name}, {self.size:,} parameters", highlight=False
        )

    def data(self) -> None:
        made_from = {"easy-vqa": version("easy-vqa"), "mmdora": __version__}
        self.steps.run(2, "data", made_from, self.files.values(), lambda: easy_vqa.prepare(self.root))

    def train(self) -> None:
        for name, config in self.configs.items():
            made_from = {"config": config.to_dict(), "train": sha256(self.files["train"])} | self._base_digest
            run = self.runs[name]
            leaves = (run / "complete.json", _adapter(run))
            self.steps.run(3, f"train {name}", made_from, leaves, lambda c=config: self._train(c))

    def evaluate(self) -> None:
        split = {name: self.digests[name] for name in ("train", "test")}
        split |= {"questions": len(self.questions), "task": TASK}
        self.scores[BASELINE] = self.steps.run(
            4,
            f"evaluate {BASELINE}",
            split,
            (),
            lambda: majority_baseline(read_records(self.files["train"]), self.questions).to_dict(),
        )
        for name, source in ({"base": self.base_name} | self.runs).items():
            folder = self.out / "eval" / name
            self.scores[name] = self.steps.run(
                4,
                f"evaluate {name}",
                split | {"weights": self.digests[name], "base": self.digests["base"]},
                (folder / "predictions.jsonl", folder / "metrics.json"),
                lambda s=source, f=folder: self._evaluate(s, f),
            )

    def export(self) -> None:
        for name, folder in self.exports.items():
            shown = {f"easy-VQA test, {len(self.questions):,} questions": self.scores[name]["overall"]["score"]}
            self.parity[name] = self.steps.run(
                5,
                f"export {name}",
                {"weights": self.digests[name], "base": self.digests["base"], "scores": shown},
                (folder / "config.json", folder / "model.safetensors"),
                lambda r=self.runs[name], f=folder, s=shown: self._export(r, f, s),
            )
            self.console.print(f"    {self.parity[name]}", highlight=False)

    def report(self, begun: float) -> Path:
        self.console.print("[bold cyan]6/7[/] [bold]report[/]")
        predictions = {name: read_predictions(self.out / "eval" / name) for name in ("base", *METHODS)}
        pictures = [record["images"][0] for record in self.questions]
        notes = {BASELINE: "majority answer of each question"}
        rows = [Row(name, score, notes.get(name, "")) for name, score in self.scores.items()]
        lines = verdict(self.scores, predictions)
        asked = (
            "the whole test split" if self.limit is None else f"a rehearsal on the first {len(pictures):,} questions"
        )
        report = Report(
            title="tiny-llava on easy-VQA: base, LoRA, DoRA",
            lead=f"{len(pictures):,} test questions ({asked}), answered by greedy generation, scored by exact match. "
            "The two runs differ in the method only: same targets, ranks, steps, seed and data.",
            verdict=lines,
            rows=rows,
            curves={name: curve(run) for name, run in self.runs.items()},
            galleries=galleries(predictions, pictures, self.root),
            parity=self.parity,
            plans={name: (run / "plan.txt").read_text(encoding="utf-8") for name, run in self.runs.items()},
            timing=[*self.steps.timing, ("this time, in all", duration(time.monotonic() - begun))],
            facts=self._facts(),
            commands=[
                f"mmdora demo {' '.join(self._columns)}",
                f"mmdora eval {' '.join(self._columns)} --data {self.files['test']}",
            ],
        )
        page = self.out / "report.html"
        write_report(report, page)
        self.console.print(scores_table(rows))
        for line in lines:
            self.console.print(line, highlight=False)
        return page

    def page(self, port: int) -> None:
        from mmdora.demo.server import serve  # gradio takes seconds to import

        self.console.print("[bold cyan]7/7[/] [bold]page[/]")
        serve(self._columns, host=HOST, port=port, results=self.out)

    @property
    def _columns(self) -> list[str]:
        return [f"base={self.base_name}", *(f"{name}={folder}" for name, folder in self.exports.items())]

    def _train(self, config: RunConfig) -> dict[str, Any]:
        run = config.training.output
        begun = (run / "config.yaml").is_file()
        if (begun and load_config(run / "config.yaml") != config) or (run / "complete.json").is_file():
            self.console.print(f"    {run} was made with other settings or data and is made anew", highlight=False)
            shutil.rmtree(run)
            begun = False
        train(config, resume=begun, say=lambda line: self.console.print(line, markup=False, highlight=False))
        return json.loads((run / "complete.json").read_text(encoding="utf-8"))

    def _evaluate(self, source: str | Path, folder: Path) -> dict[str, Any]:
        model, processor = load(source, device="cuda" if torch.cuda.is_available() else None)
        if source != self.base_name:
            merge(model)  # what the export holds; and it answers faster
        found = evaluate(model, processor, self.questions, self.root, task=TASK, out=folder, progress=True)
        del model
        gc.collect()
        assert found.scores is not None  # every question has its answer
        return found.scores.to_dict()

    def _export(self, run: Path, folder: Path, scores: dict[str, float]) -> str:
        if (folder / "config.json").is_file():  # of another run; export writes to an empty folder only
            shutil.rmtree(folder)
        return str(
            export(run, folder, rows=self.questions[:8], images_root=self.root, scores=scores, say=self._indented)
        )

    def _indented(self, line: str) -> None:
        self.console.print(f"    {line}", markup=False, highlight=False)

    def _facts(self) -> dict[str, str]:
        training = self.configs["LoRA"].training
        done = json.loads((self.runs["LoRA"] / "complete.json").read_text(encoding="utf-8"))
        versions = collect()
        return {
            "base": f"{self.base_name}, {self.size:,} parameters",
            "training": f"{training.steps} steps of {training.batch_size * training.accumulation} rows, "
            f"lr {training.lr:g}, seed {training.seed}",
            "trained on": f"{done['device']}, {done['threads']} threads",
            "data": f"easy-VQA {version('easy-vqa')} ({easy_vqa.LICENCE})",
        } | {name: versions[name] for name in ("mmdora", "python", "torch", "transformers")}


def _config(name: str, out: Path, overrides: list[str]) -> RunConfig:
    # paths as JSON, which YAML reads back unchanged whatever they hold
    paths = {"data.train": out / "data/train.jsonl", "data.images": out / "data", "training.output": out / name}
    ours = [f"--{key}={json.dumps(str(path))}" for key, path in paths.items()]
    config = load_config(CONFIGS / f"{name}.yaml", [*ours, *overrides])
    if config.training.output != paths["training.output"] or config.data.train != paths["data.train"]:
        raise MmdoraError("command line: the quickstart has its own data and run folders; move them with --out")
    return config


def _adapter(run: Path) -> Path:
    return run / "adapter" / "adapter_model.safetensors"


def _check_port(port: int) -> None:
    """Say now, not minutes later, that the page cannot be opened."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise MmdoraError(
                f"port {port} of {HOST} cannot be opened ({error}); end what uses it, or give --port N or --no-demo"
            ) from None
