"""Only what mmdora wrote itself, and nobody changed since, is written anew."""

import itertools
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from mmdora.errors import MmdoraError
from mmdora.files import full_disk, write_whole
from mmdora.outputs.folder import check_finished
from mmdora.outputs.written import FILES, Written, set_aside


def test_own_files_are_written_anew_and_others_are_not(tmp_path):
    written = Written(tmp_path / "out")
    for text in ("one", "two", "one"):
        written.write("a.txt", text)
        assert (tmp_path / "out/a.txt").read_text() == text
    (tmp_path / "out/b.txt").write_text("mine")
    for name in ("a.txt", "b.txt"):
        (tmp_path / "out" / name).write_text("mine")
        for refused in (
            lambda n=name: written.check(n),
            lambda n=name: written.write(n, "x"),
            lambda n=name: written.remove(n),
        ):
            with pytest.raises(MmdoraError, match=rf"out/{name}: is there, and is no file that mmdora wrote"):
                refused()
        assert (tmp_path / "out" / name).read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [FILES, "a.txt", "b.txt"]


def test_a_folder_or_a_link_is_not_ours(tmp_path):
    written = Written(tmp_path)
    written.write("a", "own")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert [written.may_write(name) for name in ("a", "new", "link", "folder", "dangling")] == [True, True] + 3 * [
        False
    ]


def test_a_kill_at_any_moment_leaves_a_file_that_may_be_written(tmp_path, monkeypatch):
    """A real kill before each of the renames: of the list, and of the file itself."""
    Written(tmp_path).write("a.txt", "old")
    for number in range(4):
        if not (child := os.fork()):
            kill_before_rename(number)
            Written(tmp_path).write("a.txt", f"new {number}")
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert killed is (number < 3), "there are other renames than this test thinks"
        Written(tmp_path).check("a.txt")
    assert (tmp_path / "a.txt").read_text() == "new 3"


def kill_before_rename(number: int) -> None:
    calls, replace = itertools.count(), Path.replace

    def counted(self: Path, target: Any) -> Path:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = counted


def test_a_full_disk_names_the_path_and_the_bytes(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(
            OSError, match=r"File too large; 5,000 bytes were to be written, [0-9,]+ bytes are free"
        ) as told:
            write_whole(tmp_path / "a.txt", "x" * 5000)
        assert told.value.filename == str(tmp_path / "a.txt")
        with pytest.raises(OSError) as told, full_disk(tmp_path / "b.txt"), (tmp_path / "b.txt").open("wb") as file:
            file.write(b"x" * 5000)
        assert told.value.filename == str(tmp_path / "b.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_set_aside_takes_the_first_free_name(tmp_path):
    for number in (1, 2):
        (tmp_path / "run").mkdir()
        assert set_aside(tmp_path / "run") == tmp_path / f"run.{number}"


@pytest.mark.parametrize(
    "name", [".out.partial", ".out.x1y2.partial", "run/.saving/checkpoint-3", ".prep.partial/train.jsonl"]
)
def test_what_is_not_finished_is_named(name, tmp_path, monkeypatch):
    with pytest.raises(MmdoraError, match=r"is not finished \(\.(out.*partial|saving|prep\.partial)\)"):
        check_finished(tmp_path / name)
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(MmdoraError, match="is not finished"):
        check_finished(Path("."))
    assert check_finished(tmp_path / "out.partial") == tmp_path / "out.partial"
