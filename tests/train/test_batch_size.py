"""Out of memory: a step that does not fit is run again in smaller pieces and learns the same; or one line says so."""

import functools
import json
import re

import pytest
import torch
import yaml
from processes import finished, launched
from safetensors.torch import load_file
from tiny_run import config_of, curve, first_turns, silent, tree_for
from transformers import LlavaForConditionalGeneration

from mmdora.cli import main
from mmdora.errors import OutOfMemory
from mmdora.train import batch_size, train
from mmdora.train.batch_size import is_out_of_memory

ADAPTER = "adapter/adapter_model.safetensors"
MESSAGES = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"),
    "host": RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: …"),
    "python": MemoryError(),
}


@pytest.fixture(scope="module")
def records(scene_records):
    """10 rows: an epoch of steps of four ends with one of two."""
    return first_turns(scene_records, 10)


def tree(records, output, **training):
    """Four rows a step in one micro-batch, no dropout: 6 steps, two epochs."""
    found = tree_for(records, output, evaluates=False, **{"batch_size": 4, "accumulation": 1, "steps": 6} | training)
    found["adapt"]["language"]["dropout"] = 0.0
    return found


def config(records, output, **training):
    return config_of(tree(records, output, **training))


def limit(patch, rows, where="forward", error=MESSAGES["gpu"]):
    """Memory for so many rows and no more; returns the rows of each attempt that failed."""
    forward, failed = LlavaForConditionalGeneration.forward, []

    @functools.wraps(forward)
    def limited(self, *args, **kwargs):
        if not any(self.lm_head.weight.stride()):  # the skeleton of the estimate, which takes no memory
            return forward(self, *args, **kwargs)
        count, out = len(kwargs["input_ids"]), None
        if count > rows and torch.is_grad_enabled() and where == "forward":
            failed.append(count)
            raise error
        out = forward(self, *args, **kwargs)
        if count > rows and torch.is_grad_enabled():
            lora = self.model.language_model.layers[0].self_attn.q_proj.lora_B

            def in_backward(gradient):  # after the layers above it have theirs
                handle.remove()
                failed.append(count)
                raise error

            handle = lora.register_hook(in_backward)
        return out

    patch.setattr(LlavaForConditionalGeneration, "forward", limited)
    return failed


def same(ours, theirs):
    for one, other in zip(curve(ours), curve(theirs), strict=True):
        ignored = dict.fromkeys(("epoch", "total_flos"), 0)
        assert one | ignored == pytest.approx(other | ignored, rel=1e-5, abs=1e-6)
    one, other = (load_file(run / ADAPTER) for run in (ours, theirs))
    assert all(((one[key] - other[key]).abs().max() <= 1e-4 * other[key].abs().max() + 1e-6) for key in other)


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    """Memory enough."""
    return train(config(records, tmp_path_factory.mktemp("whole") / "run"), say=silent)


@pytest.mark.parametrize(("where", "rows", "workers"), [("forward", 1, 0), ("backward", 2, 2)])
def test_smaller_pieces_learn_the_same(records, whole, tmp_path, monkeypatch, capsys, where, rows, workers):
    failed = limit(monkeypatch, rows, where)
    found = tree(records, tmp_path / "run", find_batch_size=True)
    found["data"]["workers"] = workers
    run = train(config_of(found), say=silent)
    same(run, whole)
    assert failed == {1: [4, 2], 2: [4]}[rows]
    said = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert (
        said[0] == "out of memory in step 1: micro-batches of 2 rows instead of 4 from here on, 4 rows a step as before"
    )
    assert len(said) == len(failed)
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["batch_size"] == 4
    assert json.loads((run / "checkpoint-6/manifest.json").read_text())["micro_batch"] == rows


def test_memory_that_runs_out_on_the_way(records, tmp_path, monkeypatch):
    """In the second micro-batch of the second step: what the step had gathered is dropped."""
    forward, calls = LlavaForConditionalGeneration.forward, []

    @functools.wraps(forward)
    def once(self, *args, **kwargs):
        if torch.is_grad_enabled():
            calls.append(len(kwargs["input_ids"]))
            if len(calls) == 4:
                raise MESSAGES["gpu"]
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", once)
    found = config(records, tmp_path / "run", batch_size=2, accumulation=2, find_batch_size=True)
    same(train(found, say=silent), train(config(records, tmp_path / "whole", batch_size=2, accumulation=2), say=silent))
    assert calls[:8] == [2, 2, 2, 2, 1, 1, 1, 1]


def test_a_resumed_run_does_not_try_again(records, whole, tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    failed = limit(monkeypatch, 2)
    settings = config(records, tmp_path / "run", find_batch_size=True)
    with monkeypatch.context() as patched, pytest.raises(StopError):
        from mmdora.train.steps import Steps

        step = Steps.one_pass

        def stopping(self, *args, **kwargs):
            if self.progress.global_step == 4:
                raise StopError
            return step(self, *args, **kwargs)

        patched.setattr(Steps, "one_pass", stopping)
        train(settings, say=silent)
    assert failed == [4]
    same(train(settings, resume=True, say=silent), whole)
    assert failed == [4]


def test_nobody_waits_for_the_estimate_without_a_word(records, tmp_path, monkeypatch, capsys):
    limit(monkeypatch, 0)
    said: list[str] = []
    estimate = batch_size.estimate
    monkeypatch.setattr(
        batch_size, "estimate", lambda *given: said.extend(capsys.readouterr().out.splitlines()) or estimate(*given)
    )
    with pytest.raises(OutOfMemory):
        train(config(records, tmp_path / "run"), say=silent)
    assert said[-1] == "out of memory: estimating what a step needs, which takes some seconds"


def test_one_row_that_does_not_fit(records, tmp_path, monkeypatch):
    limit(monkeypatch, 0)
    with pytest.raises(OutOfMemory) as raised:
        train(config(records, tmp_path / "run", find_batch_size=True), say=silent)
    assert re.match(
        r"out of memory in step 1, with 1 rows in a micro-batch \(estimated: 0\.\d GiB for 1 rows of \d+ tokens\); "
        r"try shorter rows",
        str(raised.value),
    )


@pytest.mark.parametrize("kind", MESSAGES)
def test_without_it_one_line(records, tmp_path, monkeypatch, capsys, kind):
    limit(monkeypatch, 2, error=MESSAGES[kind])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree(records, tmp_path / "run")))
    assert main(["train", str(path)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "mmdora: error: " in line]
    assert re.search(
        r"out of memory in step 1, with 4 rows in a micro-batch \(estimated: 0\.\d GiB for 4 rows of \d+ tokens\); "
        r"try training\.batch_size 2 with training"
        r"\.accumulation 2, or find_batch_size: true; training\.gradient_checkpointing: true; model\.dtype: bf16 with ",
        line,
    )


def test_other_errors_are_none():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of range"))


def test_memory_that_runs_out_in_one_process_only(records, whole, tmp_path):
    """Two processes agree, and what they reduce is the same."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree(records, tmp_path / "run", batch_size=2, find_batch_size=True)))

    def before(index):
        if index == 1:
            limit(pytest.MonkeyPatch(), 1)

    assert finished(launched(["train", str(path)], tmp_path / "told", before=before)) == [0, 0]
    plain = config(records, tmp_path / "plain", batch_size=2, accumulation=2)
    same(tmp_path / "run", train(plain, say=silent))
    manifest = json.loads((tmp_path / "run/checkpoint-6/manifest.json").read_text())
    assert manifest["micro_batch"] == 1 and manifest["processes"] == 2
