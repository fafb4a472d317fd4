"""Files are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest

from mmdora.files import PARTIAL, partial_path, sha256, write_whole


def test_text_bytes_and_a_function_are_written(tmp_path):
    write_whole(tmp_path / "a.txt", "grün")
    write_whole(tmp_path / "a.bin", b"\0\xff")
    write_whole(tmp_path / "a.json", lambda path: path.write_text(json.dumps({"a": 1})))
    assert (tmp_path / "a.txt").read_bytes() == "grün".encode()
    assert (tmp_path / "a.bin").read_bytes() == b"\0\xff"
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "a.bin", "a.json"}


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(beside):
        beside.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_the_old_file_and_a_name_that_cleaning_recognises(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = """
import os, signal, sys
from pathlib import Path
from mmdora.files import write_whole

def die(beside):
    beside.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

write_whole(Path(sys.argv[1]), die)
"""
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    assert path.read_text() == "old"
    left = [other for other in tmp_path.iterdir() if other != path]
    assert left == [partial_path(path)] and left[0].name.endswith(PARTIAL) and left[0].name.startswith(".")
    write_whole(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_processes_that_write_one_file_use_names_of_their_own(tmp_path):
    path = tmp_path / "a.jpg"
    assert partial_path(path, shared=True).name == f".a.jpg.{os.getpid()}{PARTIAL}"
    write_whole(path, b"x", shared=True)
    assert list(tmp_path.iterdir()) == [path]


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path):
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == sha256(content) == hashlib.sha256(content).hexdigest()


def test_files_and_html_load_without_torch():
    code = "import sys; import mmdora.files, mmdora.html; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
