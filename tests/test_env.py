"""`mmdora env`: what is installed beside what was tested, and how OpenMP's threads wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mmdora import env

SHOW = "import {first}sys; from mmdora.cli import main; sys.exit(main(['env']))"


def shown(variables: dict[str, str], first: str = "") -> dict[str, str]:
    """The rows that the command prints in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in env.WAITING}
    command = [sys.executable, "-c", SHOW.format(first=first)]
    done = subprocess.run(command, capture_output=True, text=True, env=kept | variables, timeout=300, check=True)
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines()}


def test_the_command_line_lets_waiting_threads_sleep_and_says_so():
    assert shown({})["OMP_WAIT_POLICY"].startswith("PASSIVE (set by mmdora: ")


@pytest.mark.parametrize("name", env.WAITING)
def test_a_users_own_way_of_waiting_wins(name):
    rows = shown({name: "ACTIVE" if name == "OMP_WAIT_POLICY" else "7"})
    assert rows.keys() & {*env.WAITING} == {name}
    assert "mmdora" not in rows[name]


def test_nothing_is_said_to_be_set_where_torch_is_imported_before():
    assert not shown({}, first="torch, ").keys() & {*env.WAITING}


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
