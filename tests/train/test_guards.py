"""Steps that would ruin a run are not taken; a run that is asked to stop stops at the end of a step."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_run import config_for, curve, exit_code, first_turns, forked, same_run, same_tensors, silent, tree_for, until

from mmdora.adapt.inject import inject
from mmdora.cli import main
from mmdora.config import RunConfig
from mmdora.errors import Interrupted, MmdoraError
from mmdora.families import Family
from mmdora.train import loading, train
from mmdora.train.steps import Steps

SCHEDULE: dict[str, Any] = {
    "steps": 7,
    "log_every": 3,
    "save_every": 5,
}  # a checkpoint in the middle of a mean of losses
BLOCK = "model.language_model.layers.1"
ADAPTER = Path("adapter", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def records(scene_records):
    """10 rows: the steps of an epoch have two, two and one micro-batches."""
    return first_turns(scene_records, 10)


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    """An undisturbed run."""
    return train(config(records, tmp_path_factory.mktemp("runs") / "whole"), say=silent)


def config(records: Path, output: Path, **training: Any) -> RunConfig:
    return config_for(records, output, evaluates=False, **SCHEDULE | training)


def before_each_micro_batch(patched: pytest.MonkeyPatch, act: Callable[[int], object]) -> None:
    """Call `act(step)`, counted from 1."""
    step = Steps.one_pass

    def stepping(self, *args, **kwargs):
        act(self.progress.global_step + 1)
        return step(self, *args, **kwargs)

    patched.setattr(Steps, "one_pass", stepping)


def poison(patched: pytest.MonkeyPatch, steps: Container[int], name: str, *, backward: bool = False) -> None:
    """Make a module's output, or the gradient that it hands on, not finite in some steps."""
    now = [0]
    before_each_micro_batch(patched, lambda step: now.__setitem__(0, step))

    def forward(_, __, out):
        return out * float("inf") if now[0] in steps else None

    def gradient(_, inputs, __):
        return tuple(g if g is None else g * float("nan") for g in inputs) if now[0] in steps else None

    def injected(model, adapt, **more):
        plan = inject(model, adapt, **more)
        target = model.get_submodule(name)
        target.register_full_backward_hook(gradient) if backward else target.register_forward_hook(forward)
        return plan

    patched.setattr(loading, "inject", injected)


def all_finite(run: Path) -> bool:
    """Every tensor of every file below a run folder, and every number of its logs."""

    def finite(value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            return bool(value.isfinite().all())
        if isinstance(value, (dict, list, tuple)):
            return all(map(finite, value.values() if isinstance(value, dict) else value))
        return not isinstance(value, float) or value - value == 0

    files: list[Any] = [load_file(path) for path in run.rglob("*.safetensors")]
    files += [torch.load(path, weights_only=True) for path in run.rglob("optimizer.pt")]
    files += [json.loads(path.read_text()) for path in run.rglob("*.json")]
    return finite(files) and finite(curve(run))


# --- steps that are not taken


@pytest.mark.parametrize(("step", "batches"), [(1, (0, 1)), (3, (4,)), (5, (7, 8))])
def test_a_row_that_is_not_finite(records, tmp_path, monkeypatch, step, batches):
    """A picture of NaN stops the run: step, rows as the loader handed them out, and layer are named."""
    handed_out: list[list[str]] = []

    real = Family.batch

    def poisoned(self, rows, features=None):
        batch = real(self, rows, features)
        if len(rows) == 1:  # This is the row by which the loss in chunks is tried.
            return batch
        handed_out.append([row["id"] for row in rows])
        if len(handed_out) == batches[-1] + 1:
            batch["pixel_values"][-1] = torch.nan
        return batch

    monkeypatch.setattr(Family, "batch", poisoned)
    with pytest.raises(MmdoraError) as raised:
        train(config(records, tmp_path / "run", save_every=4), say=silent)
    rows = ", ".join(name for batch in batches for name in handed_out[batch])
    assert re.match(
        rf"step {step}: gradient norm nan, loss nan; it began in the output of model\.vision_tower\S*patch_embedding; "
        rf"rows {rows}; the update was not made .*on_nonfinite: skip$",
        str(raised.value),
    )
    assert (tmp_path / "run" / "checkpoint-4").exists() == (step > 4)
    assert all_finite(tmp_path / "run") and not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize(
    ("name", "backward", "where"),
    [
        (f"{BLOCK}.mlp.up_proj", False, rf"output of {BLOCK}\.mlp\.up_proj"),
        (f"{BLOCK}.self_attn.o_proj", True, rf"gradient of {BLOCK}\.self_attn\.v_proj\.\w+"),
    ],
    ids=["forward", "gradient alone"],
)
def test_a_layer_that_is_not_finite(records, tmp_path, monkeypatch, capsys, name, backward, where):
    poison(monkeypatch, {3}, name, backward=backward)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree_for(records, tmp_path / "run", evaluates=False, save_every=2)))
    assert main(["train", str(path)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    loss = r"[\d.]+" if backward else "nan"
    assert re.match(rf"mmdora: error: step 3: gradient norm nan, loss {loss}; it began in the {where}; rows ", told)
    assert all_finite(tmp_path / "run") and (tmp_path / "run" / "checkpoint-2").exists()


def test_a_step_left_out_is_a_step_without_gradient(records, tmp_path):
    """With a mean of losses that begins before a step left out, and one that ends with it."""
    norm_of, steps = Steps.gradient_norm, {2, 5, 6}

    def without(self):
        norm = norm_of(self)
        if self.progress.global_step + 1 in steps:
            self.trained.model.zero_grad()
        return norm

    with pytest.MonkeyPatch.context() as patched:
        poison(patched, steps, f"{BLOCK}.mlp.up_proj")
        left_out = train(config(records, tmp_path / "left-out", on_nonfinite="skip"), say=silent)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Steps, "gradient_norm", without)
        expected = train(config(records, tmp_path / "expected", log_every=1), say=silent)
    assert same_tensors(left_out / ADAPTER, expected / ADAPTER) and all_finite(left_out)
    losses = {entry["step"]: entry["loss"] for entry in curve(expected) if "loss" in entry}
    logged = {entry["step"]: entry["loss"] for entry in curve(left_out) if "loss" in entry}
    assert logged == {1: losses[1], 3: losses[3], 6: losses[4]}
    assert [entry["step"] for entry in curve(left_out) if "grad_norm" in entry] == [1, 3]
    mean = sum(loss for step, loss in losses.items() if step not in steps) / (7 - len(steps))
    assert curve(left_out)[-1]["train_loss"] == pytest.approx(mean)


def test_only_so_many_steps_are_left_out(records, tmp_path, monkeypatch):
    """Also when a resume lies between them."""
    poison(monkeypatch, {2, 4, 6}, f"{BLOCK}.mlp.up_proj")
    settings = config(records, tmp_path / "run", on_nonfinite="skip", max_skipped=2)
    for resume in (False, True):
        with pytest.raises(MmdoraError, match=r"^step 6: .*\(2 steps were left out before\)\. [^:]*$"):
            train(settings, resume=resume, say=silent)
    assert all_finite(tmp_path / "run")


@pytest.mark.parametrize("save_every", [1, None])
def test_an_update_that_overflows_is_not_saved(records, tmp_path, save_every):
    settings = config(records, tmp_path / "run", steps=1, save_every=save_every, lr=1e39, warmup=0.0)
    with pytest.raises(MmdoraError, match=r"step 1: the update made \S+ not finite; it was not saved"):
        train(settings, say=silent)
    assert not list(tmp_path.rglob("*.safetensors"))


# --- signals


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_middle_of_a_step(records, whole, tmp_path, monkeypatch, sent, code):
    settings, handler = config(records, tmp_path / "run"), signal.getsignal(sent)
    seen: list[int] = []

    def send(step: int) -> None:
        seen.append(step)
        if seen.count(4) == 1 and step == 4:
            os.kill(os.getpid(), sent)

    with monkeypatch.context() as patched:
        before_each_micro_batch(patched, send)
        with pytest.raises(Interrupted, match=rf"^{sent.name}: stopped after step 4 of 7; .*checkpoint-4; ") as stopped:
            train(settings, say=silent)
    assert stopped.value.code == code and signal.getsignal(sent) is handler
    assert (tmp_path / "run" / "checkpoint-4").is_dir() and not (tmp_path / "run" / "adapter").exists()
    assert same_run(train(settings, resume=True, say=silent), whole)


def test_a_second_interrupt_stops_at_once(records, tmp_path, monkeypatch):
    seen: list[int] = []

    def interrupt(step: int) -> None:
        seen.append(step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before_each_micro_batch(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config(records, tmp_path / "run"), say=silent)
    assert seen == [1, 1, 2, 2] and not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_signal_in_the_last_step_changes_nothing(records, whole, tmp_path, monkeypatch):
    before_each_micro_batch(monkeypatch, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None)
    assert same_run(train(config(records, tmp_path / "run"), say=silent), whole)


@pytest.mark.parametrize(
    ("sent", "send", "code"),
    [(signal.SIGTERM, os.kill, 143), (signal.SIGINT, os.killpg, 130)],
    ids=["SIGTERM to the process", "Ctrl-C, which loader processes get too"],
)
def test_a_process_that_is_asked_to_stop(records, whole, tmp_path, sent, send, code):
    run, path = tmp_path / "run", tmp_path / "config.yaml"
    tree = tree_for(records, run, evaluates=False, **SCHEDULE)
    path.write_text(yaml.safe_dump(tree))

    real = Family.batch

    def slow(self, rows, features=None):
        time.sleep(0.3)  # The run then waits for its loader when the signal comes.
        return real(self, rows, features)

    child = forked(["train", str(path), "--data.workers", "2"], tmp_path / "stderr",
                   lambda: setattr(Family, "batch", slow))  # fmt: skip
    try:
        until(lambda: (run / "log.jsonl").is_file() and (run / "log.jsonl").read_text(), tmp_path / "stderr")
    finally:
        send(child, sent)
        ended = exit_code(child)
    assert ended == code
    told = (tmp_path / "stderr").read_text()
    match = re.fullmatch(rf"{sent.name}: stopped after step (\d) of 7; saved as (\S+); .*", told.splitlines()[-1])
    assert match and Path(match[2]) == run / f"checkpoint-{match[1]}" and Path(match[2]).is_dir()
    assert "Traceback" not in told
    assert same_run(train(config(records, run), resume=True, say=silent), whole)
