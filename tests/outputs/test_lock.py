"""One writer at a time, by real processes: the second is told who the first is, and a kill leaves no lock."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmdora.errors import MmdoraError
from mmdora.outputs.lock import LOCK, locked, locked_file

HOLDER = """
import sys, time
from pathlib import Path
from mmdora.outputs.lock import locked, locked_file
with (locked if sys.argv[1] == "folder" else locked_file)(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder():
    """Starts a process that holds a folder or a file; all are ended with the test."""
    started = []

    def start(kind: str, path: Path) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLDER, kind, str(path)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("kind", "take"), [("folder", locked), ("file", locked_file)])
def test_the_second_is_told_who_the_first_is_until_that_one_is_killed(tmp_path, holder, kind, take):
    path = tmp_path / "out"
    first = holder(kind, path)
    told = rf"out: another run is writing there \(process {first.pid} on \S+, since \d{{4}}-\S+: .*\); wait for it"
    with pytest.raises(MmdoraError, match=told), take(path):
        pass
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    left = path / LOCK if kind == "folder" else tmp_path / f".out{LOCK}"
    assert left.exists(), "the kill left no lock file, so that this tests nothing"
    with take(path):
        pass
    assert not left.exists()


def test_a_process_that_ends_in_order_lets_go(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    for _ in range(2):
        with locked(tmp_path):
            assert (tmp_path / LOCK).is_file()
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_stays_empty_goes_again(tmp_path):
    with locked(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "result").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]


def test_a_forked_process_that_lives_on_holds_nothing(tmp_path):
    """As a loader's worker does for some seconds after its run was killed."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        with locked(tmp_path):
            if not (grandchild := os.fork()):
                time.sleep(60)
                os._exit(0)
            os.write(writer, str(grandchild).encode())
            time.sleep(60)
        os._exit(0)
    grandchild = int(os.read(reader, 100))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        with locked(tmp_path):
            os.kill(grandchild, 0)
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_link_in_place_of_the_lock_leads_nowhere(tmp_path):
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(MmdoraError, match="out: cannot be written"), locked(tmp_path / "out"):
        pass
    assert (tmp_path / "precious").read_text() == "keep"
