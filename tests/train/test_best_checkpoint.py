"""The best checkpoint becomes the result of a run only as it was written."""

import json
import os
import shutil

import pytest
from tiny_run import EVERY_TWO, config_for, same_tensors, silent

from mmdora.errors import MmdoraError
from mmdora.train import train
from mmdora.train.checkpoint import best_of, best_problem, manifest_of
from mmdora.train.evaluation import Evaluation
from mmdora.train.steps import Steps

WEIGHTS = "adapter_model.safetensors"
LOSSES = {2: 1.0, 4: 2.0, 6: 3.0}
"""Step 2 is the best."""


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def losses(monkeypatch):
    """What evaluation finds."""

    def found(self, model, objective, log):
        step = self.step_now()
        log({"eval_loss": LOSSES[step]})
        return {"eval_loss": LOSSES[step]}

    steps = {"now": 0}
    take = Steps.take

    def counting(self, batches):
        result = take(self, batches)
        steps["now"] = self.progress.global_step
        return result

    monkeypatch.setattr(Steps, "take", counting)
    monkeypatch.setattr(Evaluation, "step_now", lambda self: steps["now"], raising=False)
    monkeypatch.setattr(Evaluation, "run", found)


def damages():
    return {
        "a bit": lambda best: flip(best / WEIGHTS),
        "mmdora.json": lambda best: flip(best / "mmdora.json"),
        "gone": shutil.rmtree,
        "no manifest": lambda best: (best / "manifest.json").unlink(),
    }


@pytest.mark.parametrize("damage", damages().values(), ids=damages())
def test_a_best_checkpoint_that_is_damaged_is_not_the_result(ten_rows, tmp_path, losses, damage, monkeypatch):
    output, step = tmp_path / "run", Steps.one_pass

    def damaging(self, *args, **kwargs):
        if self.progress.global_step == 5 and (best := output / "checkpoint-2").is_dir():
            shutil.copytree(best, tmp_path / "kept", dirs_exist_ok=True)
            damage(best)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Steps, "one_pass", damaging)
    config = config_for(ten_rows, output, **EVERY_TWO)
    with pytest.raises(MmdoraError, match=r"the best checkpoint cannot become the result: .*checkpoint-2.*--resume"):
        train(config, say=silent)
    assert not (output / "adapter").exists() and not (output / "complete.json").exists()
    monkeypatch.setattr(Steps, "one_pass", step)
    with pytest.raises(MmdoraError, match=r"the best checkpoint so far: .*checkpoint-2.*--allow-changes"):
        train(config, resume=True, say=silent)
    assert not (output / "adapter").exists()
    without = shutil.copytree(output, tmp_path / "without")
    lines: list[str] = []
    train(config_for(ten_rows, without, **EVERY_TWO), resume=True, allow_changes=True, say=lines.append)
    assert any("warning" in line and "the best checkpoint so far" in line for line in lines)
    assert same_tensors(without / "adapter" / WEIGHTS, without / "checkpoint-6" / WEIGHTS)
    shutil.rmtree(output / "checkpoint-2", ignore_errors=True)
    shutil.copytree(tmp_path / "kept", output / "checkpoint-2")
    train(config, resume=True, say=silent)
    assert same_tensors(output / "adapter" / WEIGHTS, output / "checkpoint-2" / WEIGHTS)


def test_the_best_is_looked_for_where_the_run_lies_now(stopped):
    state = json.loads((stopped / "checkpoint-4" / "trainer_state.json").read_text())
    best = best_of(stopped / "checkpoint-4")
    assert best is not None and best.parent == stopped and best.name in state["best_model_checkpoint"]
    assert best_problem(stopped / "checkpoint-4") is None
    os.truncate(best / WEIGHTS, 10)
    assert "has 10 bytes" in (best_problem(stopped / "checkpoint-4") or "")


@pytest.mark.parametrize("key", ["step", "skipped", "logging", "base", "data"])
def test_the_manifest_protects_itself(stopped, key):
    path = stopped / "checkpoint-4" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest_of(path.parent) == manifest
    path.write_text(json.dumps(manifest, sort_keys=True))  # another spelling of the same values
    assert manifest_of(path.parent) == manifest
    path.write_text(json.dumps(manifest | {key: 3 if key != "step" else 2}))
    with pytest.raises(MmdoraError, match=r"checkpoint-4 is damaged: the content of manifest\.json is not what"):
        manifest_of(path.parent)
    del manifest["sha256"]  # as mmdora before 0.2 wrote it
    path.write_text(json.dumps(manifest))
    assert manifest_of(path.parent) == manifest
