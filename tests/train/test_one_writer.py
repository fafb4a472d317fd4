"""One run at a time in an output folder, and nothing there that a run did not write is replaced."""

import os
import signal
import time

import pytest
import yaml
from tiny_run import contents, exit_code, first_turns, forked, tree_for, until

from mmdora.outputs.lock import LOCK
from mmdora.train import run


@pytest.fixture
def config(scene_records, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree_for(first_turns(scene_records, 4), tmp_path / "run", evaluates=False, steps=2)))
    return str(path)


def test_a_second_run_is_refused_before_anything_is_written(config, tmp_path):
    reached, told = tmp_path / "reached", tmp_path / "told"

    def waits() -> None:
        def asleep(*_, **__):
            reached.write_text("")
            time.sleep(60)

        run.load_all = asleep

    first = forked(["train", config], tmp_path / "first", waits)
    until(reached.exists, tmp_path / "first")
    before = contents(tmp_path / "run")
    assert exit_code(forked(["train", config, "--training.seed", "7"], told)) == 2
    assert f"run: another run is writing there (process {first} on " in told.read_text()
    assert exit_code(forked(["train", config, "--resume"], told)) == 2
    assert contents(tmp_path / "run") == before and set(before) == {LOCK}
    os.kill(first, signal.SIGKILL)
    assert exit_code(first) == -signal.SIGKILL
    assert exit_code(forked(["train", config], told)) == 0, told.read_text()
    assert LOCK not in contents(tmp_path / "run")
    whole = contents(tmp_path / "run")
    assert exit_code(forked(["train", config, "--training.seed", "7"], told)) == 2
    assert "holds a run" in told.read_text() and contents(tmp_path / "run") == whole


@pytest.mark.parametrize(
    "name", ["README.md", "log.jsonl", "plan.txt", "complete.json", "adapter/mine", "checkpoint-2/x"]
)
def test_a_file_of_others_in_the_run_folder(config, tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert exit_code(forked(["train", config], tmp_path / "told")) == 2
    assert f"{tmp_path / 'run' / name.split('/')[0]} is there, and no run wrote it" in (tmp_path / "told").read_text()
    assert contents(tmp_path / "run") == {name: b"mine"}


def test_a_readme_that_was_edited_stays(config, tmp_path):
    told = tmp_path / "told"
    assert exit_code(forked(["train", config], told)) == 0, told.read_text()
    (tmp_path / "run/README.md").write_text("my notes")
    assert exit_code(forked(["train", config, "--resume"], told)) == 0, told.read_text()
    assert (tmp_path / "run/README.md").read_text() == "my notes"
    assert "README.md: was changed by others, and is left as it is" in told.read_text()
