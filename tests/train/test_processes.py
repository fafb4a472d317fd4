"""Two processes over gloo are one process with the same rows per step: losses, resume, files, and every way to stop."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml
from processes import finished, free_port, launched
from safetensors.torch import load_file
from tiny_run import config_of, contents, curve, first_turns, same_run, silent, tree_for

from mmdora.batches.order import Batches
from mmdora.batches.sampler import GroupedSampler
from mmdora.cli import main
from mmdora.config import Training
from mmdora.errors import MmdoraError
from mmdora.train import objective, train
from mmdora.train.processes import Processes
from mmdora.train.saving import Checkpoints
from mmdora.train.steps import Steps

SAME = {"rel": 1e-5, "abs": 1e-6}
DDP = Path(__file__).parents[2] / "configs" / "accelerate" / "8_gpus_ddp.yaml"
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def records(scene_records):
    """18 rows, three of them text only: a step in which one process has no image, and one in which it has no row."""
    return first_turns(scene_records, 18)


def tree(records, output, dropout=0.0, **training):
    """Four rows a step: one process takes two micro-batches of two, two processes take one each."""
    found = tree_for(records, output, evaluates=False, **training)
    found["adapt"]["language"]["dropout"] = dropout
    return found


def alone(records, output, resume=False, **options):
    return train(config_of(tree(records, output, **options)), resume=resume, say=silent)


def two(records, output, *more, before=lambda index: None, codes=(0, 0), **options):
    """The same config in two processes (or as many as there are codes), with half the accumulation."""
    path = output.parent / f"{output.name}.yaml"
    output.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree(records, output, accumulation=1, **options)))
    told = output.parent / f"{output.name}-told"
    found = finished(launched(["train", str(path), *more], told, len(codes), before))
    said = [(told / f"{index}.stderr").read_text() for index in range(len(codes))]
    assert found == list(codes), said
    return said


def losses(run):
    return [entry["loss"] for entry in curve(run) if "loss" in entry]


def same(ours, theirs):
    """Two runs up to the rounding of sums in another order, and to what counts the micro-batches of one process."""
    for one, other in zip(curve(ours), curve(theirs), strict=True):
        counted = dict.fromkeys(("epoch", "total_flos"), 0)
        assert one | counted == pytest.approx(other | counted, **SAME)  # pyright: ignore
    one, other = (load_file(run / ADAPTER) for run in (ours, theirs))
    assert one.keys() == other.keys()
    assert all(((one[key] - other[key]).abs().max() <= 1e-4 * other[key].abs().max() + 1e-6) for key in one)


def asked_to_stop(index, step=4):
    """One of two processes gets SIGTERM within a step."""
    training_step = Steps.one_pass

    def stopping(self, *args, **kwargs):
        if index == 1 and self.progress.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, *args, **kwargs)

    Steps.one_pass = stopping


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    """One undisturbed process."""
    return alone(records, tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def pair(records, tmp_path_factory):
    """Two undisturbed processes, each of which notes what it reduces and what it writes."""
    output = tmp_path_factory.mktemp("pair") / "run"

    def watch(index):
        note = (output.parent / f"{index}.jsonl").open("a", buffering=1)
        write_result = Checkpoints.write_result

        def noting(self, folder, best):
            trained = [p for p in self.trained.model.parameters() if p.requires_grad]
            data = self.trained.wrapped._get_ddp_logging_data()
            note.write(json.dumps({
                "reduced": [data["num_parameter_tensors"], data["total_parameter_size_bytes"]],
                "trained": [len(trained), sum(p.numel() * p.element_size() for p in trained)],
                "rates": {group["name"]: group["initial_lr"] for group in self.trained.optimizer.param_groups},
            }) + "\n")  # fmt: skip
            write_result(self, folder, best)

        Checkpoints.write_result = noting

        def heard(event, values):
            if event == "open" and str(values[0]).startswith(str(output)) and values[2] & (os.O_WRONLY | os.O_RDWR):
                note.write(json.dumps({"wrote": str(Path(values[0]).relative_to(output))}) + "\n")

        sys.addaudithook(heard)

    said = two(records, output, before=watch)
    notes = [[json.loads(line) for line in (output.parent / f"{i}.jsonl").read_text().splitlines()] for i in (0, 1)]
    return output, notes, said


def test_two_processes_are_one(whole, pair):
    assert len(losses(whole)) == 8
    same(pair[0], whole)


def test_a_process_without_an_image_or_without_a_row(records):
    """What the two runs above went through, and stock sharding does not: no row twice, none left out."""
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    has_image = np.array([bool(row["images"]) for row in rows])
    batches = Batches(
        GroupedSampler(18, 2, 0, np.array([len(str(row["messages"])) for row in rows]), has_image), 2, 2, has_image, 5
    )
    each = list(batches)
    assert len(each) == 10 and each[-1] == [~5]
    assert sorted(i for batch in each for i in batch if i >= 0) == list(range(18))
    kinds = [[bool(has_image[batch].any()) for batch in each[n : n + 2]] for n in range(0, 8, 2)]
    assert [True, False] in kinds or [False, True] in kinds


def test_a_micro_batch_without_an_image_gets_one_beside_it():
    """Where parameters are sharded, every process runs the tower; what is there for that alone is masked."""
    has_image = np.array([True, False, False, False, True, False, True, False, False])
    order = GroupedSampler(9, 2, 0, None, has_image)
    plain, beside = (list(Batches(order, 2, 2, has_image, spare=4, companions=on)) for on in (False, True))
    assert len(plain) == len(beside) == 6 and plain[-1] == beside[-1] == [~4]  # no row is left for it
    lacking = [not has_image[batch].any() for batch in plain[:-1]]
    assert any(lacking) and not all(lacking)
    assert beside[:-1] == [[*batch, ~4] if lacks else batch for batch, lacks in zip(plain, lacking, strict=False)]
    batches = Batches(order, 2, 2, has_image, spare=4, companions=True)
    assert [batches.of_round(n, process) for n in range(3) for process in (0, 1)] == beside


@pytest.mark.parametrize(
    ("gpus", "asked", "says"),
    [
        (3, "", r"3 GPUs are visible to one process: .*--nproc-per-node 3 .* CUDA_VISIBLE_DEVICES=0"),
        (0, "FSDP", r"FSDP was asked for, but this is one process without a GPU, .*without a word; start several"),
        (0, "DEEPSPEED", r"DeepSpeed was asked for, but there is no GPU, .*without a word; leave it out"),
    ],
    ids=["several GPUs", "FSDP on a CPU", "DeepSpeed on a CPU"],
)
def test_what_would_silently_be_something_else(records, tmp_path, monkeypatch, capsys, gpus, asked, says):
    """GPUs that idle, and one process that cannot be sharded: said before anything is read or written."""
    monkeypatch.setenv(f"ACCELERATE_USE_{asked or 'FSDP'}", "true" if asked else "false")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree(records, tmp_path / "run")))
    assert main(["train", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"mmdora: error: {says}", line)
    assert not (tmp_path / "run").exists()


def test_what_a_launcher_says_of_precision_and_accumulation_does_not_count(monkeypatch):
    """`accelerate launch` exports both, from its config or its defaults."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    names: dict[Literal["fp32", "bf16"], str] = {"fp32": "no", "bf16": "bf16"}
    for precision, name in names.items():
        accelerator = Processes(Training(precision=precision)).accelerator
        assert accelerator.gradient_accumulation_steps == 1 and accelerator.mixed_precision == name


def test_what_is_frozen_is_not_reduced(pair):
    for notes in pair[1]:
        (found,) = [note for note in notes if "reduced" in note]
        assert found["reduced"] == found["trained"] and found["trained"][1] < 4 * 100_000


def test_rates_by_modality(pair):
    (found,) = [note for note in pair[1][1] if "rates" in note]
    assert found["rates"] == {
        "vision/low_rank": 3e-4, "vision/magnitude": 3e-4, "projector/full": 1e-4, "projector/full_no_decay": 1e-4,
        "language/low_rank": 5e-4, "language/magnitude": 1e-3,
    }  # fmt: skip


def test_one_process_writes(whole, pair):
    output, notes, said = pair
    assert not [note["wrote"] for note in notes[1] if "wrote" in note]  # but its rng_state: torch.save tells nobody
    written = [note["wrote"] for note in notes[0] if "wrote" in note]
    assert written.count(".complete.json.partial") == written.count(".plan.txt.partial") == 1
    assert sum(name.endswith(".adapter_model.safetensors.partial") or name == ADAPTER for name in written) <= 4

    def names(run):
        found = {name for name in contents(run) if not name.startswith("tensorboard")}
        return {name.replace("rng_state_0", "rng_state") for name in found if not name.endswith("rng_state_1.pth")}

    assert names(output) == names(whole)
    assert json.loads((output / "complete.json").read_text())["processes"] == 2
    # torch itself may say that DDP looked for parameters without a gradient and at first found none
    assert not [line for line in said[1].splitlines() if line and "reducer.cpp" not in line]
    assert "8/8" in said[0]


def test_stopped_in_two_processes_and_resumed_in_one(records, whole, tmp_path):
    run = tmp_path / "run"
    said = two(records, run, before=asked_to_stop, codes=(143, 143))
    assert (
        said[0].splitlines()[-1].startswith("SIGTERM: stopped after step 4 of 8; saved as") and "SIGTERM" not in said[1]
    )
    assert (run / "checkpoint-4/rng_state_1.pth").exists()
    with pytest.raises(MmdoraError, match=r"micro-batches of a step: 2 .* -> 1 .*--training\.accumulation 2 keeps it"):
        alone(records, run, resume=True, accumulation=1)
    same(alone(records, run, resume=True), whole)


def test_stopped_in_one_process_and_resumed_in_two(records, whole, tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    step = Steps.one_pass

    def stopping(self, *args, **kwargs):
        if self.progress.global_step == 7:
            raise StopError
        return step(self, *args, **kwargs)

    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(StopError):
        patched.setattr(Steps, "one_pass", stopping)
        alone(records, run)
    two(records, run, "--resume")
    same(run, whole)


def test_resumed_in_as_many_processes(records, tmp_path):
    """Bit-equal, also where the first step after the resume is one in which a process has no row (step 5).

    With dropout, which differs from process to process.
    """
    two(records, tmp_path / "whole", dropout=0.3)
    two(records, tmp_path / "run", dropout=0.3, before=asked_to_stop, codes=(143, 143))
    two(records, tmp_path / "run", "--resume", dropout=0.3)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert same_run(tmp_path / "run", tmp_path / "whole")
    states = [torch.load(tmp_path / f"whole/checkpoint-8/rng_state_{i}.pth", weights_only=False)["cpu"] for i in (0, 1)]
    assert not torch.equal(*states)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_resumed_where_every_row_has_an_image(records, tmp_path, count):
    """Rows with images alone, so that DDP has no need to look for what gets no gradient; see `_tell_ddp`."""
    rows = [line for line in records.read_text().splitlines() if json.loads(line)["images"]]
    (pictured := records.with_name("pictured.jsonl")).write_text("\n".join(rows[:12]) + "\n")
    options: dict[str, Any] = {"batch_size": 1, "steps": 6, "dropout": 0.1}
    two(pictured, tmp_path / "whole", codes=(0,) * count, **options)
    stop = partial(asked_to_stop, step=3)
    two(pictured, tmp_path / "run", codes=(143,) * count, before=stop, **options)
    two(pictured, tmp_path / "run", "--resume", codes=(0,) * count, **options)
    assert same_run(tmp_path / "run", tmp_path / "whole")


def one_line(said):
    """The one line of an error that two processes share."""
    lines = [line for text in said for line in text.splitlines()]
    (error,) = [line for line in lines if line.startswith("mmdora: error: ")]
    assert not [line for line in lines if "Traceback" in line]
    return error


def test_a_row_that_only_one_process_reads(records, tmp_path):
    folder = shutil.copytree(records.parent, tmp_path / "data")
    picture = folder / "7.png"
    picture.write_bytes(picture.read_bytes()[:-200])
    said = two(folder / records.name, tmp_path / "run", codes=(2, 2))
    assert re.search(r"record scene-7: image \S+7\.png: damaged or cut short", one_line(said))
    assert not (tmp_path / "run/complete.json").exists()


def test_a_disk_that_is_full_for_one_process(records, tmp_path):
    def full(index):
        def save(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        if index == 1:
            torch.save = save

    said = two(records, tmp_path / "run", before=full, codes=(2, 2))
    assert re.search(r"process 1: \S+checkpoint-3: saving failed .*No space left", one_line(said))
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith("checkpoint-")]


def test_a_loss_that_is_not_finite_in_one_process(records, tmp_path):
    def poison(index):
        loss_of, one_pass, now = objective._loss_of, Steps.one_pass, [0]

        def stepping(self, *args, **kwargs):
            now[0] = self.progress.global_step
            return one_pass(self, *args, **kwargs)

        def poisoned(output):
            return loss_of(output) * (torch.inf if index == 1 and now[0] == 3 else 1)

        Steps.one_pass, objective._loss_of = stepping, poisoned

    said = two(records, tmp_path / "run", before=poison, codes=(2, 2))
    error = one_line(said)
    assert re.search(r"step 4: gradient norm nan, loss [0-9.]+ and inf; the loss itself is .*; rows scene-", error)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_launcher_that_is_asked_to_stop(records, whole, tmp_path):
    """`accelerate launch` with the config for DDP, which is torchrun: it hands SIGTERM on, all stop after the same
    step, and one process goes on.

    Three interpreters import torch anew, which on a busy core takes minutes; torchrun itself gives what it stops
    30 seconds, enough for a step and a save.
    """
    run, path = tmp_path / "run", tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree(records, run, accumulation=1, save_every=None)))
    worker = Path(__file__).with_name("torchrun_worker.py")
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(DDP)]
    command += ["--num_processes", "2"]
    command += ["--main_process_port", str(free_port())]  # with 0, they look for each other at port 0, forever
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "told").open("w") as told:
        launcher = subprocess.Popen([*command, str(worker), "train", str(path)], env=environment, stderr=told)
        deadline = time.monotonic() + 15 * 60
        try:
            while not ((run / "log.jsonl").is_file() and (run / "log.jsonl").read_text()):
                assert launcher.poll() is None and time.monotonic() < deadline, (tmp_path / "told").read_text()
                time.sleep(0.02)
        finally:
            launcher.send_signal(signal.SIGTERM)
            code = launcher.wait(120)
        assert code != 0
    (_,) = run.glob("checkpoint-*")
    assert 1 <= len(losses(run)) < 8
    same(alone(records, run, resume=True, save_every=None), whole)
