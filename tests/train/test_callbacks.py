"""Callbacks of transformers, called by mmdora's loop."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_run import config_for, same_run, silent
from transformers import EarlyStoppingCallback, TrainerCallback

from mmdora.errors import MmdoraError
from mmdora.train import train
from mmdora.train.checkpoint import checkpoints


class Watch(TrainerCallback):
    """Notes every event, and sets a flag of the control where it is told to."""

    def __init__(self, at: int = 0, flag: str = ""):
        self.at, self.flag, self.events, self.given = at, flag, [], {}

    def note(self, event, args, state, control, **given):
        self.events.append((event, state.global_step))
        self.given, self.args, self.state = given, args, state
        if event == "on_step_end" and state.global_step == self.at:
            setattr(control, self.flag, True)


for name in ("init_end", "train_begin", "train_end", "epoch_begin", "epoch_end", "step_begin", "step_end", "evaluate",
             "save", "log"):  # fmt: skip
    setattr(Watch, f"on_{name}", lambda self, *args, event=f"on_{name}", **given: self.note(event, *args, **given))


def test_all_events_come_and_the_run_is_the_same(ten_rows, tmp_path):
    watch, settings = Watch(), {"steps": 3, "eval_every": 2, "save_every": 2}
    plain = train(config_for(ten_rows, tmp_path / "plain", **settings), say=silent)
    run = train(config_for(ten_rows, tmp_path / "run", **settings), callbacks=[watch], say=silent)
    assert same_run(run, plain)
    assert [step for event, step in watch.events if event == "on_step_end"] == [1, 2, 3]
    assert [step for event, step in watch.events if event == "on_evaluate"] == [2, 3]
    assert [step for event, step in watch.events if event == "on_save"] == [2, 3]
    assert [step for event, step in watch.events if event == "on_epoch_end"] == [3]
    names = [event for event, _ in watch.events]
    assert names[:4] == ["on_init_end", "on_train_begin", "on_epoch_begin", "on_step_begin"]
    assert names[-1] == "on_train_end" and watch.given.keys() >= {"model", "optimizer", "lr_scheduler"}
    assert watch.args.eval_steps == 2 and watch.state.max_steps == 3 and watch.state.is_world_process_zero


def test_a_callback_ends_the_run(ten_rows, tmp_path):
    watch = Watch(1, "should_training_stop")
    config = config_for(ten_rows, tmp_path / "run", evaluates=False, steps=6, save_every=None)
    run = train(config, callbacks=[watch], say=silent)
    assert watch.events[-1] == ("on_train_end", 1) and (run / "complete.json").exists()


def test_a_callback_asks_for_a_checkpoint_and_an_evaluation(ten_rows, tmp_path):
    watch, other = Watch(1, "should_save"), Watch(1, "should_evaluate")
    settings = {"steps": 3, "save_every": 3, "eval_every": 3}
    run = train(config_for(ten_rows, tmp_path / "run", **settings), callbacks=[watch, other], say=silent)
    assert [path.name for path in checkpoints(run)] == ["checkpoint-3", "checkpoint-1"]
    assert [step for event, step in other.events if event == "on_evaluate"] == [1, 3]
    config = config_for(ten_rows, tmp_path / "none", evaluates=False, steps=2)
    with pytest.raises(MmdoraError, match="no held-out records"):
        train(config, callbacks=[Watch(1, "should_evaluate")], say=silent)


def test_stock_early_stopping_stops(ten_rows, tmp_path):
    config = config_for(ten_rows, tmp_path / "run", steps=6, lr=0.0, eval_every=1, save_every=1)
    run = train(config, callbacks=[EarlyStoppingCallback(1, 100.0)], say=silent)
    assert checkpoints(run)[0].name == "checkpoint-2"


def test_what_is_no_callback_or_waits_in_vain_is_told(ten_rows, tmp_path):
    class Inside(TrainerCallback):
        def on_substep_end(self, args, state, control, **given):
            raise AssertionError

    config = config_for(ten_rows, tmp_path / "run")
    cases: list[Any] = [(Watch, "give an instance"), (print, "is no transformers"), (Inside(), "is never called")]
    for callback, match in cases:
        with pytest.raises(MmdoraError, match=match):
            train(config, callbacks=[callback], say=silent)
    with pytest.raises(MmdoraError, match="should_epoch_stop"):
        train(config, callbacks=[Watch(1, "should_epoch_stop")], say=silent)
