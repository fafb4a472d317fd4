"""Takes a tiny checkpoint of a family through everything a user does with a base, step by step."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText

import mmdora
from mmdora.batches.lengths import token_counts
from mmdora.cli import main
from mmdora.demo import compare
from mmdora.demo.columns import load_columns
from mmdora.demo.turns import AnswerSettings, new_turn
from mmdora.export.logits import outputs_of
from mmdora.export.snippet import QUESTION
from mmdora.families import IGNORE, ask, family_of
from mmdora.models.load import load_processor
from mmdora.records.images import open_image
from mmdora.records.reader import read_records

from . import checkpoints, clips, records

CLOSE = 2e-5
"""max|a - b| / max|b| of logits that rounding in fp32 explains."""
FAILED, NOT_REACHED, REFUSED, BROKEN = "FAILED: ", "not reached", "refused", "transformers: "
"""What a result begins with if its step failed, if its ground was missing, if mmdora declined it with a reason, or if
the family cannot compute in this transformers."""
NO_PACKING = "data.packing: this model cannot train on packed rows"
"""What a refusal to pack says; it is a result, not a fault, because the run tells it before training."""


class StepError(Exception):
    """A step that failed, with the last line that a user would see."""


@dataclass
class Walk:
    """One family's way. Each public method is a step and returns a note, or raises.

    Attributes:
        name: name of the family.
        folder: where the checkpoint, its records and its runs are written.
        quick: whether the export compares tensors alone, because `stock` compares logits too.
    """

    name: str
    folder: Path
    quick: bool = False
    results: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base, self.run_folder, self.out = self.folder / "base", self.folder / "run", self.folder / "export"
        self.config = self.folder / "config.yaml"

    def walk(self) -> dict[str, str]:
        """Take every step: step -> "ok", a note, or what went wrong. A step whose ground is missing is left out."""
        for title, step, needs in STEPS:
            if any(not self.good(need) for need in needs):
                self.results[title] = NOT_REACHED
                continue
            if title in COMPUTING and (broken := checkpoints.RECIPES[self.name].broken):
                self.results[title] = f"{BROKEN}{broken}"
                continue
            begun = time.monotonic()
            try:
                self.results[title] = step(self) or "ok"
            except StepError as error:
                self.results[title] = f"{FAILED}{error}"
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}:{place.lineno}"
                first = " ".join(str(error).split())[:300]
                self.results[title] = f"{FAILED}{type(error).__name__} at {where}: {first}"
            self.seconds[title] = time.monotonic() - begun
        return self.results

    def good(self, step: str) -> bool:
        return not self.results[step].startswith((FAILED, NOT_REACHED, BROKEN))

    def command(self, *words: str | Path) -> str:
        """What a command prints.

        Raises:
            StepError: it failed.
        """
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(list(map(str, words)))
        if code != 0:
            lines = [line for line in err.getvalue().splitlines() if line.strip()] or out.getvalue().splitlines()
            raise StepError(f"mmdora {words[0]}, exit code {code}: {lines[-1] if lines else ''}"[:400])
        return out.getvalue()

    def train(self, output: str, *overrides: str) -> str:
        shutil.rmtree(self.folder / output, ignore_errors=True)
        return self.command("train", self.config, "--training.output", self.folder / output, *overrides)

    # --- the steps

    def make(self) -> None:
        recipe = checkpoints.RECIPES[self.name]
        for package in recipe.needs:
            checkpoints.stand_in(package)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        checkpoints.make(self.name, self.base)
        self.train_file, self.held_out = records.write(
            self.folder / "data", several=recipe.several, without=recipe.without, turns=recipe.turns
        )
        if family_of(load_processor(str(self.base))).videos is not None:
            clips.write(self.folder / "data" / "videos.jsonl")
            for path in (self.train_file, self.held_out):
                path.write_bytes(path.read_bytes() + (self.folder / "data" / "videos.jsonl").read_bytes())
        parts = {"vision": 2, "projector": 2, "language": 4}
        adapt: dict[str, Any] = {part: {"method": "dora", "rank": parts[part]} for part in recipe.parts}
        adapt |= {part: {"method": "full"} for part in recipe.full}
        tree = {
            "model": {"base": str(self.base)},
            "adapt": adapt,
            "data": {"train": str(self.train_file)},
            "training": {"steps": 2, "batch_size": 3, "lr": 1e-2, "log_every": 1, "save_every": 1, "report_to": []},
        }
        self.config.write_text(yaml.safe_dump(tree))

    def inspect(self) -> None:
        self.command("inspect", self.base)

    def memory(self) -> None:
        shown = self.command("inspect", self.base, "--config", self.config)
        if "Memory at the peak" not in shown:
            raise StepError("no estimate of the memory")

    def dry_run(self) -> str | None:
        shown = self.command("train", self.config, "--dry-run")
        if "⟦" not in shown:
            raise StepError("nothing is learned")
        return None

    def counts(self) -> None:
        """The tokens that are counted beforehand are those of the batch, for every record."""
        family = family_of(load_processor(str(self.base)))
        rows = read_records(self.train_file)
        counted = token_counts(rows, family).tolist()
        seen = [family.counted(family.batch([rows[index]])) for index in range(len(rows))]
        if counted != seen:
            raise StepError(f"counted {counted}, in the batch {seen}")

    def labels(self) -> None:
        """What is learned is the answer and its end, and generation stops at that end."""
        family = family_of(load_processor(str(self.base)))
        rows = read_records(self.train_file)
        for index in range(len(rows)):
            row = rows[index]
            labels = family.batch([row])["labels"][0]
            text = family.tokenizer.decode(labels[labels != IGNORE])
            said = [m["content"][0]["text"] for m in row["messages"] if m["role"] == "assistant"]
            text = text if family.one_stream else text.removeprefix(family.tokenizer.bos_token)
            bare = text.replace(family.ending.token or "", "|")
            if [part.strip() for part in bare.split("|")] != [*said, ""]:
                raise StepError(f"learns {text!r} of {said}")

    def trains(self) -> None:
        self.train("run")

    def max_length(self) -> None:
        self.train("limited", "--data.max_length", "2000", "--training.steps", "1")

    def packed(self) -> str | None:
        try:
            self.train("packed", "--data.max_length", "2000", "--data.packing", "true", "--training.steps", "1")
        except StepError as error:
            if NO_PACKING not in str(error):
                raise
            return REFUSED
        return None

    def resume(self) -> None:
        """A run that stopped after its first step and was continued ends in the same adapter."""
        shutil.rmtree(self.folder / "again", ignore_errors=True)
        shutil.copytree(self.run_folder, self.folder / "again")
        for gone in ("adapter", "checkpoint-2"):
            shutil.rmtree(self.folder / "again" / gone)
        self.command("train", self.config, "--training.output", self.folder / "again", "--resume")
        weights = Path("adapter", "adapter_model.safetensors")
        if (self.folder / "again" / weights).read_bytes() != (self.run_folder / weights).read_bytes():
            raise StepError("another adapter than without the stop")

    def evaluate(self) -> None:
        out = self.folder / "eval"
        shutil.rmtree(out, ignore_errors=True)
        self.command("eval", f"run={self.run_folder}", "--data", self.held_out, "--task", "exact", "--out", out)

    def export(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.command("export", self.run_folder, self.out, *(("--parity", "tensors") if self.quick else ()))

    def stock(self) -> None:
        """The code of the card loads the export in stock transformers, reads a question as mmdora does, and gives the
        same logits."""
        model, processor = mmdora.load(self.run_folder)
        self.picture().save(self.folder / "photo.jpg")
        (code,) = re.findall(r"```python\n(.*?)```", (self.out / "README.md").read_text(encoding="utf-8"), re.DOTALL)
        made: dict[str, Any] = {}
        with contextlib.chdir(self.folder), redirect_stdout(io.StringIO()):
            exec(code, made)
        picture = Image.open(self.folder / "photo.jpg").convert("RGB")
        ours, inputs = family_of(processor).encode_prompts([ask(QUESTION, picture)]), made["inputs"]
        inputs.pop("labels", None)
        if inputs["input_ids"].tolist() != ours["input_ids"].tolist():
            raise StepError("stock transformers reads a question as other tokens")
        with torch.no_grad():
            self.equal(made["model"].float()(**inputs).logits, model(**ours).logits)

    def peft(self) -> None:
        """PEFT loads the adapter onto the base, with the adapted model's logits."""
        model, processor = mmdora.load(self.run_folder)
        base: Any = AutoModelForImageTextToText.from_pretrained(self.base, dtype=torch.float32)
        theirs: Any = PeftModel.from_pretrained(base, str(self.run_folder / "adapter")).eval()
        asked = [ask("What colour is the square?", self.picture())]
        one = outputs_of(theirs, processor, asked, text=False).logits[0]
        self.equal(one, outputs_of(model, processor, asked, text=False).logits[0])

    def page(self) -> None:
        """Base and run answer a question and a second one on the page."""
        columns = load_columns([f"base={self.base}", f"run={self.run_folder}"], say=lambda line: None)
        settings = AnswerSettings(max_tokens=4)
        turns = []
        for question in ("What colour is the square?", "And the circle?"):
            turns.append(new_turn(columns, question, settings, blind=False))
            *_, last = compare.answer(columns, turns, [self.picture()])
            for state in last:
                if state.status != "done":
                    raise StepError(f"column {state.name}: {state.status} {state.error}")
            turns[-1] = replace(turns[-1], answers=tuple(last))

    def picture(self) -> Any:
        return open_image(read_records(self.train_file)[2]["images"][0])

    def equal(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        away = float((ours - theirs).abs().max() / theirs.abs().max())
        if not away <= CLOSE:
            raise StepError(f"logits differ by {away:.1e}")


Step = tuple[str, Callable[[Walk], str | None], tuple[str, ...]]
STEPS: tuple[Step, ...] = (
    ("make", Walk.make, ()),
    ("inspect", Walk.inspect, ("make",)),
    ("memory", Walk.memory, ("make",)),
    ("dry run", Walk.dry_run, ("make",)),
    ("labels", Walk.labels, ("make",)),
    ("counts", Walk.counts, ("make",)),
    ("train", Walk.trains, ("make",)),
    ("max_length", Walk.max_length, ("train",)),
    ("packed", Walk.packed, ("train",)),
    ("resume", Walk.resume, ("train",)),
    ("eval", Walk.evaluate, ("train",)),
    ("export", Walk.export, ("train",)),
    ("stock", Walk.stock, ("export",)),
    ("PEFT", Walk.peft, ("train",)),
    ("page", Walk.page, ("train",)),
)
"""Title, step, and the steps that must have succeeded before it."""
COMPUTING = ("memory", "train", "max_length", "packed", "resume", "eval", "export", "stock", "PEFT", "page")
"""The steps that run the model's forward, or stand on one that does."""
