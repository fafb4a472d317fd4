"""An export that is killed, stopped or doubled: what it leaves is no checkpoint, and the next one clears it away."""

import os
import signal
import time

import pytest
from tiny_run import exit_code, forked, until

from mmdora.errors import MmdoraError
from mmdora.export import run
from mmdora.export.place import beside
from mmdora.outputs.lock import LOCK


def asleep(*_):
    time.sleep(60)


@pytest.fixture
def exporting(tiny_llava, tmp_path):
    """An export in a process of its own that has written the weights and goes no further."""
    told = tmp_path / "told"
    command = ["export", str(tiny_llava), str(tmp_path / "out"), "--parity", "tensors"]
    child = forked(command, told, lambda: setattr(run, "_complete", asleep))
    until((tmp_path / ".out.partial/model.safetensors").exists, told)
    return child, command, told


def test_a_half_export_is_named_and_cleared(exporting, tmp_path):
    child, command, told = exporting
    with pytest.raises(MmdoraError, match=rf"/out: another run is writing there \(process {child} on "):
        run.export("tiny-llava", tmp_path / "out")
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL
    half = tmp_path / ".out.partial"
    assert (half / "config.json").is_file() and (half / LOCK).is_file(), "it was killed too early to test anything"
    records = ["--data", str(tmp_path / "r.jsonl")]
    for other in (
        ["inspect"],
        ["eval", *records],
        ["demo"],
        ["analyze"],
        ["verify", "--server", "http://127.0.0.1:9/v1"],
    ):
        assert exit_code(forked([other[0], f"a={half}" if other[0] == "demo" else str(half), *other[1:]], told)) == 2
        assert "is not finished (.out.partial)" in told.read_text(), told.read_text()
    with pytest.raises(MmdoraError, match="is not finished"):
        run.export(half, tmp_path / "again")
    (half / "foreign.bin").write_text("left")
    assert exit_code(forked(command, told)) == 0, told.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "told"}
    assert not {"foreign.bin", LOCK} & {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_says_what_is_left(exporting, tmp_path, sent, code):
    child, _, told = exporting
    os.kill(child, sent)
    assert exit_code(child) == code
    line = told.read_text().splitlines()[-1]
    assert line == f"{sent.name}: stopped; nothing is at {tmp_path / 'out'}; the same command begins anew"
    assert [path.name for path in tmp_path.iterdir()] == ["told"]


def test_what_came_to_the_place_meanwhile_is_kept(tmp_path):
    with pytest.raises(MmdoraError, match="out: is not empty"), beside(tmp_path / "out") as folder:
        (folder / "model.safetensors").write_text("new")
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine.txt").write_text("keep")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out/mine.txt").read_text() == "keep"
