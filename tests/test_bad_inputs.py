"""Every folder of `bad_inputs/` through the real command line: one line, exit code 2, and nothing else happens.

A case is a folder with what a user or an attacker may hand in, laid over `bad_inputs/common/`, and a
`case.yaml`:

    run     the command line; the working directory is a copy of the case
    says    what the line has to contain; `a|b`: one of the two
    exit    its exit code; default 2. 0: an input that looks bad and is served; null: either
    loads   true: the model has to be loaded before this can be known; null: does not matter. Default false
    needs   what is made for the case: run (a trained run), base (a copy of tiny-llava), outside (files
            beside the working directory that nobody may read)
    make    steps for what git cannot hold, see `bad_input_maker.Maker`
    warns   true: more lines than one are expected
    silent  true: mmdora once took this without a word and did something wrong; such cases are counted apart
"""

import contextlib
import faulthandler
import io
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from audit import Watch, forget_reading, strangers, was_read, write_outside
from bad_input_maker import Maker
from transformers import PreTrainedModel

from mmdora.cli import main

CASES = Path(__file__).parent / "bad_inputs"
NAMES = sorted(str(path.parent.relative_to(CASES)) for path in CASES.rglob("case.yaml"))
KEYS = {"run", "says", "exit", "loads", "needs", "make", "warns", "silent"}
SECONDS = 30


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with two checkpoints, as a case with `needs: run` finds it in `run/`."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(CASES / "common", folder, dirs_exist_ok=True)
    with contextlib.chdir(folder):
        assert main(["train", "config.yaml", "--training.steps", "2", "--training.save_every", "1"]) == 0
    return folder / "run"


def test_there_is_a_case_for_every_kind() -> None:
    kinds = {name.split("/")[0] for name in NAMES}
    assert kinds >= {"config", "data", "paths", "images", "checkpoint", "model"} and len(NAMES) > 150


def test_the_cases_are_counted_and_silent_wrongs_apart() -> None:
    silent = [name for name in NAMES if _case(name).get("silent", False)]
    print(f"{len(NAMES)} bad inputs, of which {len(silent)} were silent wrongs")
    told = f"`tests/bad_inputs`, {len(NAMES)} cases, {len(silent)} of which mmdora once took without a word"
    assert told in (CASES.parents[1] / "docs" / "checked.md").read_text(encoding="utf-8"), told


@pytest.mark.parametrize("name", NAMES)
def test_bad_input(
    name: str,
    watch: Watch,
    tmp_path: Path,
    tiny_llava: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    case = _case(name)
    assert set(case) <= KEYS, "an unknown key says nothing"
    here, needs = tmp_path / "here", case.get("needs", [])
    _lay_out(CASES / name, here)
    declared = []
    if "run" in needs:
        run = request.getfixturevalue("trained")
        shutil.copytree(run, here / "run")
        declared.append(run.parent)  # The run's config names the data there.
    if "base" in needs:
        shutil.copytree(tiny_llava, here / "base")
    shutil.copytree(CASES / name, here, dirs_exist_ok=True, ignore=shutil.ignore_patterns("case.yaml"))
    outside = write_outside(tmp_path) if "outside" in needs else []
    for verb, *arguments in case.get("make", []):
        getattr(Maker(here), verb)(*arguments)
    before = _contents(here)
    forget_reading(outside)
    loaded: list[str] = []
    stock = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def loading(cls: Any, *args: Any, **kwargs: Any) -> Any:
        loaded.append(cls.__name__)
        return stock(cls, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(loading))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    capfd.readouterr()
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # what blocks in C cannot be broken off otherwise
    try:
        with watch.watching(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(shlex.split(case["run"]))
    finally:
        faulthandler.cancel_dump_traceback_later()
    monkeypatch.undo()
    shown = capfd.readouterr()

    assert code == (case.get("exit", 2) if case.get("exit", 2) is not None else code), shown
    assert code in (0, 2)
    if code == 2:
        line = _one_line(shown.err, case.get("warns") or loaded)
        assert "\n" not in line and "Traceback" not in shown.err + shown.out
        assert not re.search(r"0x[0-9a-f]{8}", line), "a memory address"
        assert len(line) < 1500 or "tensors do not fit" in line
        for part in case["says"]:
            assert any(choice in line for choice in part.split("|")), line
    else:
        for part in case["says"]:
            assert any(choice in shown.out + shown.err for choice in part.split("|")), shown
    if case.get("loads", False) is not None:
        assert bool(loaded) is case.get("loads", False), f"loaded: {loaded}"
    assert not list(tmp_path.rglob("CANARY")), "code of the input ran"
    assert not watch.events, watch.events
    assert not [file for file in watch.compiled if file.startswith(str(tmp_path))], "code of the input was compiled"
    assert not strangers(watch.opened, tmp_path, *declared), "read outside the declared roots"
    assert not [path for path in outside if was_read(path)], "read outside the declared roots"
    after = _contents(here)
    begun = code == 0 or loaded  # then the run's own log and README are written on
    kept = {
        path: content for path, content in before.items() if not begun or "checkpoint-1/" in path or "adapter/" in path
    }
    kept = {path: content for path, content in kept.items() if code == 2 or "checkpoint-1/" in path}
    lost = [path for path, content in kept.items() if after.get(path, "") != content]
    assert not lost, "something already there was changed or lost"
    if code == 2 and not loaded:
        assert not after.keys() - before.keys(), "a refused command leaves nothing behind"


@pytest.mark.parametrize("name", ["config/python_object", "paths/absolute", "config/a_fifo"])
def test_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    case = _case(name)
    _lay_out(CASES / name, tmp_path)
    for verb, *arguments in case.get("make", []):
        getattr(Maker(tmp_path), verb)(*arguments)
    command = [sys.executable, "-m", "mmdora", *shlex.split(case["run"])]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=4 * SECONDS, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2, done.stderr
    assert _one_line(done.stderr, False).startswith("mmdora: error: ")
    assert not list(tmp_path.rglob("CANARY"))


def test_the_watch_sees_what_it_has_to(watch: Watch, tmp_path: Path) -> None:
    """A check that cannot fail checks nothing."""
    outside = write_outside(tmp_path)
    forget_reading(outside)
    with watch.watching():
        (tmp_path / "outside" / "secret.png").read_bytes()
        subprocess.run(["true"], check=True)
        with contextlib.suppress(OSError), socket.socket() as client:
            client.settimeout(0.01)
            client.connect(("127.0.0.1", 9))
        compile("1", str(tmp_path / "code.py"), "exec")
    assert strangers(watch.opened, tmp_path)
    assert [event.split()[0] for event in watch.events][-1] == "socket.connect" and len(watch.events) >= 2
    assert str(tmp_path / "code.py") in watch.compiled


def _case(name: str) -> dict[str, Any]:
    return yaml.safe_load((CASES / name / "case.yaml").read_text(encoding="utf-8"))


def _lay_out(case: Path, here: Path) -> None:
    """The case over what all share; what the case has as a folder is no file any more."""
    shutil.copytree(CASES / "common", here, dirs_exist_ok=True)
    for path in case.iterdir():
        if path.is_dir() and (here / path.name).is_file():
            (here / path.name).unlink()
    shutil.copytree(case, here, dirs_exist_ok=True, ignore=shutil.ignore_patterns("case.yaml"))


def _one_line(stderr: str, more: Any) -> str:
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    assert lines and lines[-1].startswith("mmdora: error: "), stderr
    assert more or len(lines) == 1, stderr
    return lines[-1]


def _contents(folder: Path) -> dict[str, Any]:
    """Path -> content of what may be read without waiting."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.stat().st_size < 2**28 else path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
