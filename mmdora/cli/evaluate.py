"""`mmdora eval`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mmdora.cli.app import Count, Flag, app, named_models
from mmdora.cli.named import check_model, check_results_folder
from mmdora.errors import MmdoraError
from mmdora.outputs.folder import check_finished
from mmdora.outputs.stop import stoppable


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked, and how it is scored.

    Parameters
    ----------
    data
        Folder that `mmdora prep` wrote, or a file of records; of a suite: the folder of its tasks' folders.
    task
        How to ask and score; default: what the data's card names, else exact match.
    suite
        Columns of a paper's table: paper-llava, paper-vlbart-image, paper-vlbart-video or paper-commonsense.
    split
        Of the folder; default: the one that papers report.
    images
        Root of the image paths; default: the card's, else the folder of the records.
    boxes
        What the numbers of <box> in records are that do not say so themselves.
    boxes_to
        How the models write boxes; default: their family's way. As data.boxes.to of their training.
    limit
        Score the first N records only (a rehearsal).
    scores
        A server's score for a column of the suite, in percent: vqav2=78.6, or MODEL:vqav2=78.6; repeatable.
    """

    data: Path | None = None
    task: str | None = None
    suite: str | None = None
    split: str | None = None
    images: Path | None = None
    boxes: Literal["pixels", "relative"] | None = None
    boxes_to: Literal["pixels", "thousand", "qwen2", "internvl", "loc", "square", "shares"] | None = None
    limit: Count | None = None
    scores: list[str] | None = None

    @property
    def box_rule(self) -> dict[str, str]:
        """The boxes as in the config's `data.boxes`."""
        given = {"from": self.boxes, "to": self.boxes_to}
        return {key: value for key, value in given.items() if value is not None}

    def checked_data(self) -> Path:
        """The data.

        Raises:
            MmdoraError: there is none, or the options do not go together.
        """
        if self.data is None:
            raise MmdoraError("eval: say what to evaluate on with --data")
        if self.suite and (self.task or self.split or self.images):
            raise MmdoraError("eval: --suite chooses tasks, splits and images itself; drop --task, --split, --images")
        if self.scores and not self.suite:
            raise MmdoraError("eval: --scores enters a server's score into a suite's table; add --suite")
        return self.data


@app.command(name="eval", sort_key=4)
def evaluate(
    *models: str,
    questions: Questions = Questions(),
    out: Path = Path("runs/eval"),
    batch_size: Count = 64,
    dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    quantize: Literal["nf4", "fp4", "int8", "none"] | None = None,
    list: Annotated[bool, Flag] = False,
    trust_remote_code: Annotated[bool, Flag] = False,
) -> None:
    """Score models by the answers they generate, as papers do; several models give one table.

    Writes predictions.jsonl, the dataset's official result file, metrics.json and errors.html for each model. What
    a killed run has answered is taken up by the same command. Under `accelerate launch` processes share the work.

    Examples: `mmdora eval base=tiny-llava dora=runs/dora --data data/easy-vqa`;
    `mmdora eval runs/llava-dora --suite paper-llava --data data --dtype fp16`; `mmdora eval --list`

    Parameters
    ----------
    models
        Bundled names, hub ids, checkpoint, adapter or run folders; NAME=MODEL gives a name.
    out
        Folder for the results, in TASK/MODEL (of another split in TASK-SPLIT, of a rehearsal in TASK-first-N).
    batch_size
        Questions per forward pass.
    dtype
        Of the weights; default: the checkpoint's own.
    quantize
        Quantise the language part while it is read; default: as an adapter was trained, none: not at all.
    list
        List tasks and suites.
    trust_remote_code
        Run code that a checkpoint brings along.
    """
    if list:
        from mmdora.evaluate.listing import show

        return show()
    check_results_folder(out)
    data, named = questions.checked_data(), named_models(models)
    for model in named.values():
        check_model(model)
    if not check_finished(data).exists():
        raise MmdoraError(f"{data}: no such file of records (mmdora prep makes one), or folder of them")
    from rich.console import Console

    from mmdora.evaluate.command import run_suite
    from mmdora.evaluate.models import EvaluationSettings, evaluate_on, source_of
    from mmdora.evaluate.processes import processes

    settings = EvaluationSettings(out, questions.limit, batch_size, dtype, trust_remote_code, quantize)
    settings = replace(settings, boxes=questions.box_rule)
    with stoppable(lambda: f"what was answered is kept below {out}; the same command goes on from there"):
        if questions.suite:
            run_suite(named, questions.suite, data, settings, questions.scores or ())
        else:
            source = source_of(data, questions.task, questions.split, questions.images)
            compared = evaluate_on(named, source, settings)
            if processes().is_main_process:
                Console().print(compared, highlight=False)
