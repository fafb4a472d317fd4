"""`mmdora env`: what is installed beside what was tested, and how OpenMP's threads wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch  # noqa: F401 (some tests act as if it were not imported yet)

from mmdora import env


def test_the_command_line_lets_waiting_threads_sleep_and_says_so():
    """In a process of its own, where torch is not imported yet."""
    kept = {name: value for name, value in os.environ.items() if name not in env.WAITING}
    command = [sys.executable, "-m", "mmdora", "env"]
    done = subprocess.run(command, capture_output=True, text=True, env=kept, timeout=300, check=True)
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines()}
    assert rows["OMP_WAIT_POLICY"].startswith("PASSIVE (set by mmdora: ")


def collected(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], *, torch_came_first: bool) -> dict[str, str]:
    """The facts of a process that starts with these variables."""
    kept = {name: value for name, value in os.environ.items() if name not in env.WAITING}
    monkeypatch.setattr(os, "environ", kept | variables)
    monkeypatch.setattr(env, "_passive_is_ours", False)
    with monkeypatch.context() as patched:
        if not torch_came_first:
            patched.delitem(sys.modules, "torch")
        env.wait_passively()
    return env.collect()


@pytest.mark.parametrize("name", env.WAITING)
def test_a_users_own_way_of_waiting_wins(monkeypatch, name):
    rows = collected(monkeypatch, {name: "ACTIVE" if name == "OMP_WAIT_POLICY" else "7"}, torch_came_first=False)
    assert rows.keys() & {*env.WAITING} == {name}
    assert "mmdora" not in rows[name]


def test_nothing_is_said_to_be_set_where_torch_is_imported_before(monkeypatch):
    assert not collected(monkeypatch, {}, torch_came_first=True).keys() & {*env.WAITING}
    assert collected(monkeypatch, {}, torch_came_first=False).keys() & {*env.WAITING} == {"OMP_WAIT_POLICY"}


@pytest.fixture
def installed(monkeypatch, tmp_path) -> dict[str, str]:
    """Versions that seem to be installed, beside a lock of three packages."""
    versions = {"torch": "2.14.1+cpu", "transformers": "5.24.0", "huggingface_hub": "2.4.0", "numpy": "2.4.6"}
    (tmp_path / "lock.txt").write_text("# tested\ntorch==2.14.1\ntransformers==5.24.0\nhuggingface-hub==2.4.0\n")
    monkeypatch.setattr(env, "LOCK", tmp_path / "lock.txt")
    monkeypatch.setattr(env, "_version", versions.get)
    return versions


def test_the_tested_versions_are_known_whatever_their_build(installed):
    assert env.collect()["tested"] == "with these versions"


def test_newer_and_older_versions_are_named(installed):
    installed |= {"torch": "2.15.0", "transformers": "5.9.0"}
    assert env.collect()["tested"] == (
        "newer here: torch 2.15.0 (tested: 2.14.1); older here: transformers 5.9.0 (tested: 5.24.0)"
    )


def test_the_lock_names_what_is_compared():
    tested = env.LOCK.read_text(encoding="utf-8").lower().replace("_", "-")
    for package in env.PACKAGES:
        assert f"\n{package.lower().replace('_', '-')}==" in tested
