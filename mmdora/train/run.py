"""`train` turns a config into a run folder, in stages.

```
begin ─▶ read_sources ─▶ _facts ─▶ load_all ─▶ _open ─▶ assembled ─▶ _run ─▶ _finish
Begun    Sources         facts     Loaded                Loop         Ended
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import set_seed

from mmdora.adapt.gates import closed
from mmdora.config import RunConfig, config_of
from mmdora.errors import Interrupted, OutOfMemory
from mmdora.models.chat_template import template_of
from mmdora.models.locate import with_lasting_paths
from mmdora.train.batch_size import estimated, is_out_of_memory, out_of_memory
from mmdora.train.begin import Begun, Request, begin, hold, silent
from mmdora.train.callbacks import Callback, Callbacks, check_callbacks
from mmdora.train.check import check_packages, check_schedule, check_warmup, device_notes
from mmdora.train.checkpoint import writing_to
from mmdora.train.early_stopping import measured, metric
from mmdora.train.evaluation import Evaluation
from mmdora.train.folder import LOG, RESULT, close_folder, open_folder
from mmdora.train.guards import StopRequest
from mmdora.train.in_memory import keep, with_rows
from mmdora.train.loader import Feed
from mmdora.train.loading import Loaded, Say, load_all
from mmdora.train.log import Report, RunLog
from mmdora.train.loop import Loop, Observers, steps_of
from mmdora.train.objective import Objective
from mmdora.train.optimizer import prepare
from mmdora.train.processes import Processes
from mmdora.train.progress import Progress
from mmdora.train.report_to import reporters
from mmdora.train.saving import Checkpoints
from mmdora.train.sources import Sources, describe, facts_of, read_sources


def train(
    config: RunConfig | Mapping[str, Any] | Path | str,
    *,
    rows: Any = None,
    held_out: Any = None,
    callbacks: Sequence[Callback] = (),
    resume: bool | Path = False,
    allow_changes: bool = False,
    trust_remote_code: bool = False,
    say: Say = print,
) -> Path:
    """Train adapters and write a run folder.

    The folder holds `README.md`, which explains it, `config.yaml`, `plan.txt`, `log.jsonl`, `tensorboard/`,
    `checkpoint-N/`, `adapter/` (the best adapter if there are evaluations, else the last one) and `complete.json`,
    which is written last.

    Args:
        config: the whole configuration of the run, a dict of its sections, or the path of a YAML file.
        rows: rows to learn in place of the file `data.train`: a list of dicts, a `datasets.Dataset` or another iterable
            of rows, each with `messages` and `images`, or with `image`, `question` and `answer`. A picture is a path
            (relative ones start from `data.images`), a PIL image or the bytes of a file. Rows are written to `data/` in
            the run folder, and pictures that are in memory too.
        held_out: likewise, in place of `data.eval`.
        callbacks: `transformers` callbacks, called in every process with what `Trainer` gives them; what they set in
            `TrainerControl` is done. Their own state is not kept in checkpoints.
        resume: True to continue from the newest complete checkpoint, or the path of a checkpoint.
        allow_changes: whether to go on although config, data or base differ from those of the stopped run.
        trust_remote_code: whether to run code that the base brings along.
        say: receives messages for people.

    Raises:
        Interrupted: after SIGTERM or SIGINT, once the current step is done and saved.
        MmdoraError: if config, data or run folder do not fit together (before the model is loaded, if that can be known
            by then), or if there is no room to write.
    """
    check_callbacks(callbacks)
    config, kept = with_rows(with_lasting_paths(config_of(config)), rows, held_out)
    with ExitStack() as held, writing_to(config.training.output):
        check_schedule(config)
        check_packages(config)
        processes = Processes(config.training)
        processes.main_makes(partial(hold, config.training.output, held))
        request = Request(config, resume, allow_changes, trust_remote_code, say if processes.main else silent)
        with processes.together():
            for note in device_notes(config, processes.device):
                request.say(f"note: {note}")
        begun = processes.main_makes(partial(begin, request, processes))
        processes.main_makes(partial(keep, kept, resumed=begun.before is not None, allow_changes=allow_changes))
        sources = processes.main_first(partial(read_sources, config))
        facts = processes.main_makes(partial(_facts, request, processes, sources, begun))
        loaded = load_all(config, sources, processes, request.trust, request.say, begun.checkpoint)
        facts |= {"base": loaded.plan.fingerprint, "plan": str(loaded.plan)}
        processes.main_makes(partial(_open, request, begun, loaded, facts))
        loop = assembled(config, processes, loaded, facts, begun.checkpoint, callbacks)
        ended = _run(
            loop, begun.checkpoint, partial(estimated, config, loaded.processor, trust_remote_code=request.trust)
        )
        _finish(loop, loaded, ended)
    return config.training.output


def _facts(request: Request, processes: Processes, sources: Sources, begun: Begun) -> dict[str, Any]:
    """The facts that checkpoints hold about the run: processes and fingerprints of the data. The main process only."""
    facts = {"processes": processes.count, **facts_of(request.config, sources, processes)}
    begun.check(request, facts)
    return facts | {"measured": measured(request.config, facts["data"])}


def _open(request: Request, begun: Begun, loaded: Loaded, facts: Mapping[str, Any]) -> None:
    """Say what will be done, and write the first files of the run folder. Only the main process does this."""
    begun.check(request, facts)
    data = describe(loaded.rows, loaded.packs, request.config)
    request.say(str(loaded.plan))
    request.say(data)
    for note in loaded.family.notes(loaded.model.generation_config):
        request.say(f"note: {note}")
    open_folder(request.config, str(loaded.plan), data)
    if loaded.ranks is not None:
        loaded.ranks.write(request.config.training.output)


def assembled(
    config: RunConfig,
    processes: Processes,
    loaded: Loaded,
    facts: Mapping[str, Any],
    checkpoint: Path | None,
    callbacks: Sequence[Callback] = (),
) -> Loop:
    """Make the loop, ready to run. The random states are set from `training.seed`."""
    # With the same seed in all processes, dropout would be the same in all of them.
    set_seed(config.training.seed + processes.index)
    with processes.together():
        feed = Feed(config, loaded.packs or loaded.rows, loaded.collate, processes)
    check_warmup(config, steps_of(config, feed))
    trained = prepare(loaded.model, config, processes, steps_of(config, feed), checkpoint)
    evaluation = None
    if loaded.held_out is not None:
        evaluation = Evaluation(config, loaded.held_out, loaded.collate, loaded.answers, processes)
    reports: list[Report] = []
    if processes.main:
        reports = [RunLog(config.training.output / LOG, feed.rows_per_step), *reporters(config)]
    template = loaded.processor.chat_template if template_of(config.data) is not None else None
    checkpoints = Checkpoints(config, processes, trained, facts, feed.pieces, template)
    say = tqdm.write if processes.main else silent  # tqdm.write does not disturb the progress bar.
    objective = Objective(
        loaded.model,
        processes,
        one_stream=loaded.family.one_stream,
        chunked=config.training.chunked_loss,
        probe=feed.probe,
        say=say,
    )
    given = {
        "model": loaded.model,
        "processing_class": loaded.processor,
        "optimizer": trained.optimizer,
        "lr_scheduler": trained.schedule,
    }
    told = Callbacks(callbacks, config, processes, given, feed.steps_per_epoch)
    observers = Observers(reports, StopRequest(processes), say, told)
    return Loop(config, processes, trained, feed, objective, evaluation, checkpoints, observers)


@dataclass(frozen=True)
class Ended:
    """A run after its last step.

    Attributes:
        progress: state of the run at its end.
        seconds: time since the loop began in this process.
        resumed: whether the run went on from a checkpoint.
    """

    progress: Progress
    seconds: float
    resumed: bool


def _run(loop: Loop, checkpoint: Path | None, estimate: Callable[[Any], str]) -> Ended:
    """Run all remaining steps.

    Args:
        estimate: function batch -> text with the memory that it needs, for the error if memory runs out.

    Raises:
        Interrupted: if a signal has ended the run before its last step.
        OutOfMemory: if memory has run out.
    """
    stop, training, started = loop.observers.stop, loop.config.training, time.monotonic()
    with stop.listening(), ExitStack() as closing:
        for report in loop.observers.reports:
            closing.callback(report.close)
        try:
            progress = loop.run(checkpoint)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            rows = loop.feed.pieces.limit if loop.feed.pieces else training.batch_size
            loop.observers.say("out of memory: estimating what a step needs, which takes some seconds")
            needed = estimate(loop.steps.in_hand[-1] if loop.steps.in_hand else None)
            line = out_of_memory(loop.progress.global_step + 1, rows, training, needed)
            line.told = isinstance(error, OutOfMemory) and not loop.processes.main  # All processes raise it.
            raise line from None
    if stop.signal is not None and progress.global_step < progress.max_steps:
        step = progress.global_step
        stopped = Interrupted(
            f"{stop.signal.name}: stopped after step {step} of {progress.max_steps}; saved as "
            f"{training.output / f'checkpoint-{step}'}; go on with --resume",
            128 + stop.signal,
        )
        stopped.told = not loop.processes.main
        raise stopped
    return Ended(progress, time.monotonic() - started, checkpoint is not None)


def _finish(loop: Loop, loaded: Loaded, ended: Ended) -> None:
    """Write the resulting adapter, and `complete.json` with the numbers of the run."""
    config, processes, progress = loop.config, loop.processes, ended.progress
    with processes.together():
        loop.checkpoints.check_finite(progress.global_step)
    shut, gates = closed(loaded.model)
    loop.checkpoints.write_result(config.training.output / RESULT, loop.best)
    losses = [entry["loss"] for entry in progress.log_history if "loss" in entry]
    done = {
        "steps": progress.global_step,
        "seconds": round(ended.seconds, 1),
        "resumed": ended.resumed,
        "final_loss": losses[-1] if losses else None,
        f"best_{metric(config)}": progress.best_metric,
        "trainable": loaded.plan.trainable,
        "device": str(processes.device),
        "processes": processes.count,
        "threads": torch.get_num_threads(),
    } | ({"closed_gates": f"{shut} of {gates}"} if gates else {})
    data = describe(loaded.rows, loaded.packs, config)
    processes.main_makes(partial(close_folder, config, str(loaded.plan), data, done))
