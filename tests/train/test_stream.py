"""Training on a stream: a stopped run goes on bit-equal, processes share the rows, mistakes are one line."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from processes import finished, launched
from tiny_run import config_of, curve, first_turns, same_run, silent, tree_for

from mmdora.errors import Interrupted, MmdoraError
from mmdora.files import with_checksum
from mmdora.train import train
from mmdora.train.overview import show_batch
from mmdora.train.steps import Steps

ROWS = 17  # of an odd number two processes get shares that differ


@pytest.fixture(scope="module")
def shards(scene_records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows in three files, beside copies of their images."""
    folder = tmp_path_factory.mktemp("shards")
    for image in scene_records.parent.glob("*.png"):
        shutil.copy(image, folder)
    lines = first_turns(scene_records, ROWS).read_text().splitlines(keepends=True)
    for number in range(3):
        (folder / f"{number}.jsonl").write_text("".join(lines[number::3]))
    return folder


def tree(shards: Path, output: Path, workers: int = 0, **training):
    """Four rows a step, 8 steps: the second pass begins in the fifth."""
    found = tree_for(shards / "[012].jsonl", output, evaluates=False, **training)
    found["data"] |= {"stream": True, "shuffle_buffer": 6, "workers": workers}
    return found


def learned(note: Path):
    """Note the ids of each micro-batch that is run."""
    step = Steps.one_pass

    def noting(self, *args, **kwargs):
        number = self.progress.global_step * self.feed.accumulation + len(self.in_hand)
        with note.open("a") as file:
            file.write(json.dumps(self.feed.batches.ids[number]) + "\n")
        return step(self, *args, **kwargs)

    return noting


def noted(note: Path) -> list[str]:
    return [name for line in note.read_text().splitlines() for name in json.loads(line)]


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """An undisturbed run, and the ids of its rows in the order in which they were learned."""
    output = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Steps, "one_pass", learned(output.parent / "ids"))
        train(config_of(tree(shards, output)), say=silent)
    return output, noted(output.parent / "ids")


def test_a_stream_is_learned_in_passes(whole):
    output, names = whole
    assert len(curve(output)) == 9 and len(names) == 32
    assert sorted(names[:ROWS]) == sorted(f"scene-{number}" for number in range(ROWS))
    assert len(set(names[ROWS:])) == 32 - ROWS and names[ROWS:] != names[: 32 - ROWS]
    assert "a stream of 3 files, shuffled 6 rows at a time" in (output / "README.md").read_text()


@pytest.mark.parametrize(("stop", "workers", "then"), [(4, 2, 2), (7, 0, 2)])
def test_resumed_is_bit_equal(shards, whole, tmp_path, monkeypatch, stop, workers, then):
    """Stopped in the first pass and in the second; the number of loader processes changes nothing."""
    step = Steps.one_pass

    def stopping(self, *args, **kwargs):
        if self.progress.global_step == stop - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "one_pass", stopping)
        with pytest.raises(Interrupted, match=f"stopped after step {stop} of 8"):
            train(config_of(tree(shards, output, workers)), say=silent)
    monkeypatch.setattr(Steps, "one_pass", learned(tmp_path / "ids"))
    train(config_of(tree(shards, output, then)), resume=True, say=silent)
    assert same_run(output, whole[0])
    assert noted(tmp_path / "ids") == whole[1][4 * stop :]


def test_two_processes_share_the_rows(shards, tmp_path):
    path, output = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(tree(shards, output, accumulation=1, steps=6)))

    def watch(index):
        Steps.one_pass = learned(tmp_path / f"{index}.ids")

    codes = finished(launched(["train", str(path)], tmp_path, before=watch))
    said = [(tmp_path / f"{index}.stderr").read_text() for index in (0, 1)]
    assert codes == [0, 0], said
    one, other = (noted(tmp_path / f"{index}.ids") for index in (0, 1))
    assert len(one) == len(other) == 12  # in as many steps, though their passes end apart
    assert sorted(one[:9] + other[:8]) == sorted(f"scene-{number}" for number in range(ROWS))
    assert [len(part) for part in (set(one[9:]), set(other[8:]), {*one[9:], *other[8:]})] == [3, 4, 7]
    (output / "complete.json").unlink()
    with pytest.raises(MmdoraError, match="processes, on which the order of a stream depends: 2 -> 1"):
        train(config_of(tree(shards, output, steps=6)), resume=True, say=silent)


def test_what_is_not_finite_is_named_by_its_rows(shards, whole, tmp_path, monkeypatch):
    """The rows of the third step, though loader processes have read on."""
    norm = Steps.gradient_norm

    def broken(self):
        return norm(self) * (float("nan") if self.progress.global_step == 2 else 1)

    monkeypatch.setattr(Steps, "gradient_norm", broken)
    names = ", ".join(whole[1][8:12])
    with pytest.raises(MmdoraError, match=f"^step 3: gradient norm nan.*; rows {names}; the update was not made"):
        train(config_of(tree(shards, tmp_path / "run", workers=2)), say=silent)


def test_other_data_are_not_resumed(shards, whole, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    other = shutil.copytree(shards, tmp_path / "shards")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["train"] = str(other / "[012].jsonl")
    config["training"]["output"] = str(run)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for checkpoint in run.glob("checkpoint-*"):
        manifest = checkpoint / "manifest.json"
        moved = json.loads(manifest.read_text().replace(str(shards), str(other)))
        manifest.write_text(json.dumps(with_checksum(moved)))
    (run / "complete.json").unlink()
    with (other / "1.jsonl").open("a") as file:
        file.write(json.dumps({"id": "more"}))
    with pytest.raises(MmdoraError, match=re.escape(f"the content of {other / '[012].jsonl'}")):
        train(config_of(tree(other, run)), resume=True, say=silent)


def test_a_bad_row_ends_the_run_with_its_line(shards, tmp_path):
    """A missing image shows where rows are decoded, a row over the limit where they are read."""
    for file in shards.glob("[012].jsonl"):
        shutil.copy(file, tmp_path)
    found = tree(tmp_path, tmp_path / "run", workers=2)
    with pytest.raises(MmdoraError, match=rf"^record scene-\d+: image '\d+.png': no such file below {tmp_path}[^\n]*$"):
        train(config_of(found), say=silent)
    found["data"] |= {"images": str(shards), "max_length": 50}
    found["training"]["output"] = str(tmp_path / "other")
    with pytest.raises(MmdoraError, match=r"^record scene-\d+ is over data.max_length 50 \(\d+ tokens\)[^\n]*$"):
        train(config_of(found), say=silent)


def test_rows_that_are_held_out(shards, scene_records, tmp_path):
    found = tree(shards, tmp_path / "run", eval_every=3)
    found["data"] |= {"eval": str(scene_records)}
    with pytest.raises(MmdoraError, match=r"^data.eval: the stream holds its record 'scene-\d+' too"):
        train(config_of(found), say=silent)


def test_evaluation_beside_a_stream(shards, scene_records, tmp_path):
    """The rest of the records, read by loader processes of their own."""
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(scene_records.read_text().splitlines(keepends=True)[ROWS:]))
    found = tree(shards, tmp_path / "run", workers=2, eval_every=1, steps=1, save_every=None)
    found["data"] |= {"eval": str(held_out), "images": str(shards)}
    run = train(config_of(found), say=silent)
    assert [entry["step"] for entry in curve(run) if "eval_loss" in entry] == [1]


def test_the_first_batch_is_shown(shards, tmp_path, capsys):
    show_batch(config_of(tree(shards, tmp_path / "run")))
    shown = capsys.readouterr().out
    assert "first 2 of a stream's rows" in shown and "scene-0: " in shown
