"""Nothing of the user's is lost by `mmdora prep`: foreign files, its own input, kills, signals, a full disk."""

import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_run import contents, exit_code, forked, until

from mmdora.data_prep import digits, folder
from mmdora.errors import MmdoraError
from mmdora.outputs.lock import LOCK
from mmdora.outputs.written import FILES
from mmdora.prepare.inputs import Inputs
from mmdora.prepare.run import prepare
from mmdora.prepare.writer import SCRATCH, Writer


def table(path: Path, rows: int) -> Path:
    lines = ({"id": f"q{number}", "question": f"What is {number}?", "answer": "x"} for number in range(rows))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("name", ["train.jsonl", "report.html", "dataset_card.json", "bad_rows.jsonl"])
def test_a_file_of_others_is_refused_by_name(name, tmp_path):
    file, out = table(tmp_path / "train.jsonl", 3), tmp_path / "out"
    out.mkdir()
    (out / name).write_text("{}")
    with pytest.raises(MmdoraError, match=rf"out/{name}: is there, and is no file that mmdora wrote"):
        prepare(folder.DATASET, out, Inputs(files=[file]))
    assert contents(out) == {name: b"{}"}


def test_the_input_is_not_replaced_by_the_output(tmp_path):
    file = table(tmp_path / "train.jsonl", 3)
    before = contents(tmp_path)
    with pytest.raises(MmdoraError, match=r"train\.jsonl: is there, and is no file that mmdora wrote"):
        prepare(folder.DATASET, tmp_path, Inputs(files=[file]))
    assert contents(tmp_path) == before


def test_own_records_are_not_read_and_replaced_at_once(tmp_path):
    out = tmp_path / "out"
    from mmdora.data_prep import messages

    rows = [{"id": "a", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    (tmp_path / "train.jsonl").write_text(json.dumps(rows[0]) + "\n")
    prepare(messages.DATASET, out, Inputs(files=[tmp_path / "train.jsonl"]))
    before = contents(out)
    with pytest.raises(MmdoraError, match=r"train\.jsonl: is read here, and would be overwritten"):
        prepare(messages.DATASET, out, Inputs(files=[out / "train.jsonl"]))
    assert contents(out) == before


def test_edited_records_are_not_replaced(tmp_path):
    file, out = table(tmp_path / "train.jsonl", 3), tmp_path / "out"
    for _ in range(2):
        prepare(folder.DATASET, out, Inputs(files=[file]))
    with (out / "train.jsonl").open("a") as records:
        records.write("\n")
    with pytest.raises(MmdoraError, match=r"train\.jsonl: is there, and"):
        prepare(folder.DATASET, out, Inputs(files=[file]))


def test_pictures_of_others_are_not_replaced(tmp_path):
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "images/test").mkdir()
    for split in ("train", "test"):
        for number in range(20):
            (tmp_path / f"images/{split}/{number}.png").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(MmdoraError, match=r"\.png: is there, and is not what would be written"):
        digits.prepare(tmp_path)
    assert contents(tmp_path) == before


def slowly(took: Path) -> None:
    """Let a run say that it has taken the first rows, and then wait."""
    take = Writer.take

    def taking(self: Writer, *chunk: Any, **options: Any) -> None:
        take(self, *chunk, **options)
        took.write_text("")
        time.sleep(60)

    Writer.take = taking


@pytest.fixture
def running(tmp_path):
    """A run in a process of its own that has begun to write: its id, its command, what it tells."""
    file, out, told, took = table(tmp_path / "train.jsonl", 600), tmp_path / "out", tmp_path / "told", tmp_path / "took"
    command = ["prep", "folder", "--in", str(file), "--out", str(out), "--workers", "1"]
    child = forked(command, told, lambda: slowly(took))
    until(took.exists, told)
    return child, command, told


def test_a_killed_run_is_cleared_by_the_next(running, tmp_path):
    child, command, told = running
    with pytest.raises(MmdoraError, match=rf"out: another run is writing there \(process {child} on "):
        prepare(folder.DATASET, tmp_path / "out", Inputs(files=[tmp_path / "train.jsonl"]))
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL
    assert {path.name for path in (tmp_path / "out").iterdir()} == {SCRATCH, LOCK}
    assert exit_code(forked(["train", "x.yaml"], told)) == 2
    (tmp_path / "x.yaml").write_text(json.dumps({"data": {"train": str(tmp_path / "out" / SCRATCH / "train.jsonl")}}))
    assert exit_code(forked(["train", str(tmp_path / "x.yaml")], told)) == 2
    assert "is not finished (.prep.partial)" in told.read_text()
    assert exit_code(forked(command, told)) == 0, told.read_text()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {FILES, "train.jsonl", "dataset_card.json", "report.html"}


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_says_what_is_left(running, tmp_path, sent, code):
    child, _, told = running
    os.kill(child, sent)
    assert exit_code(child) == code
    line = told.read_text().splitlines()[-1]
    assert line == f"{sent.name}: stopped; nothing was written to {tmp_path / 'out'}; the same command begins anew"
    assert not (tmp_path / "out").exists()


def test_a_full_disk_names_the_file_and_the_bytes(tmp_path):
    """No file may grow past a limit below the size of the records."""
    file, out, told = table(tmp_path / "train.jsonl", 3000), tmp_path / "out", tmp_path / "told"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))  # noqa: E731
    assert exit_code(forked(["prep", "folder", "--in", str(file), "--out", str(out)], told, limit)) == 2
    line = told.read_text().splitlines()[-1]
    assert line.startswith("mmdora: error: ") and str(out) in line and "nothing was written" in line
    assert "bytes are free on that disk" in line and "Traceback" not in told.read_text()
    assert not out.exists()
