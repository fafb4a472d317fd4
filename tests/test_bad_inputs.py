"""Every folder of `bad_inputs/` through the real command line: one line, exit code 2, and nothing else happens.

A case is a folder with what a user or an attacker may hand in, laid over `bad_inputs/common/`, and a
`case.yaml`:

    run     the command line; the working directory is a copy of the case
    says    what the line has to contain; `a|b`: one of the two
    exit    its exit code; default 2. 0: an input that looks bad and is served; null: either
    loads   true: the model has to be loaded before this can be known; null: does not matter. Default false
    needs   what is made for the case: run (a trained run), base (a copy of tiny-llava), outside (files
            beside the working directory that nobody may read)
    make    steps for what git cannot hold, see `Maker`
    warns   true: more lines than one are expected
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import io
import json
import os
import pickle
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import matplotlib
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from mmdora.cli import main

CASES = Path(__file__).parent / "bad_inputs"
NAMES = sorted(str(path.parent.relative_to(CASES)) for path in CASES.rglob("case.yaml"))
SECONDS = 30
READABLE = (
    *(Path(path) for path in {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix}),
    Path(__file__).parents[1],
    Path(os.environ["HF_DATASETS_CACHE"]),
    Path(huggingface_hub.constants.HF_HOME),
    Path(matplotlib.get_cachedir()),
    *map(Path, ("/proc", "/sys", "/dev/null", "/dev/urandom", "/dev/tty", "/usr/lib", "/usr/share")),
    *map(Path, ("/lib", "/etc/mime.types")),
)
"""What Python, its packages and their caches open. A case's own folder comes to it, and nothing else."""
FORBIDDEN = ("/proc/self/environ",)
PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn", "os.fork")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")


class Watch:
    """What the interpreter opened, started and ran while a case was on, as its audit events tell."""

    def __init__(self) -> None:
        self.on = False
        self.opened: list[str] = []
        self.events: list[str] = []
        self.compiled: list[str] = []
        sys.addaudithook(self._hook)  # stays for as long as the interpreter does

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(args[0], (str, bytes)):
            self.opened.append(os.fsdecode(args[0]))
        elif event in NETWORK or event in PROCESSES:
            self.events.append(f"{event} {args!r:.200}")
        elif event == "compile":
            self.compiled.append(str(args[1]))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self.opened, self.events, self.compiled = [], [], []
        self.on = True
        try:
            yield
        finally:
            self.on = False


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch CANARY",)


class Maker:
    """The verbs of `make`: [verb, path, …], paths below the working directory."""

    def __init__(self, folder: Path):
        self.folder = folder

    def fifo(self, path: str) -> None:
        os.mkfifo(self.folder / path)

    def socket(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(self.folder):
            listener.bind(path)

    def symlink(self, path: str, target: str) -> None:
        (self.folder / path).unlink(missing_ok=True)
        (self.folder / path).symlink_to(target)

    def delete(self, path: str) -> None:
        found = self.folder / path
        shutil.rmtree(found) if found.is_dir() else found.unlink()

    def copy(self, source: str, path: str) -> None:
        found = self.folder / source
        shutil.copytree(found, self.folder / path) if found.is_dir() else shutil.copyfile(found, self.folder / path)

    def sparse(self, path: str, size: int) -> None:
        """A file of `size` bytes that takes no room."""
        with (self.folder / path).open("wb") as file:
            file.truncate(size)

    def cut(self, path: str, size: int) -> None:
        os.truncate(self.folder / path, size)

    def flip(self, path: str, place: int) -> None:
        """Change one byte."""
        data = bytearray((self.folder / path).read_bytes())
        data[place] ^= 255
        (self.folder / path).write_bytes(data)

    def write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text, encoding="utf-8")

    def mode(self, path: str, bits: int) -> None:
        (self.folder / path).chmod(bits)

    def update(self, path: str, values: dict[str, Any]) -> None:
        """Set keys of a JSON object."""
        tree = json.loads((self.folder / path).read_text())
        (self.folder / path).write_text(json.dumps(tree | values))

    def replace(self, path: str, old: str, new: str) -> None:
        text = (self.folder / path).read_text()
        assert old in text
        (self.folder / path).write_text(text.replace(old, new))

    def drop_tensors(self, path: str, count: int) -> None:
        tensors = load_file(self.folder / path)
        save_file({name: tensors[name] for name in sorted(tensors)[count:]}, self.folder / path, {"format": "pt"})

    def other_weights(self, path: str) -> None:
        """The same names and shapes, other numbers."""
        tensors = load_file(self.folder / path)
        changed = {name: t + 0.01 if t.is_floating_point() else t for name, t in tensors.items()}
        save_file(changed, self.folder / path, {"format": "pt"})

    def not_finite(self, path: str) -> None:
        tensors = load_file(self.folder / path)
        save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}, self.folder / path)

    def as_pickle(self, path: str, target: str) -> None:
        """A benign file of torch.save with the tensors of a safetensors file, which goes."""
        torch.save(load_file(self.folder / path), self.folder / target)
        (self.folder / path).unlink()

    def payload(self, path: str) -> None:
        """A pickle that leaves a canary when it is read."""
        (self.folder / path).write_bytes(pickle.dumps(_Payload()))

    def rename(self, path: str, target: str) -> None:
        (self.folder / path).rename(self.folder / target)

    def entry(self, path: str, values: dict[str, Any]) -> None:
        """Set keys of the first entry of an adapter's plan."""
        tree = json.loads((self.folder / path).read_text())
        tree["plan"]["entries"][0] |= values
        (self.folder / path).write_text(json.dumps(tree))

    def deep_update(self, path: str, keys: list[str], value: Any) -> None:
        tree = json.loads((self.folder / path).read_text())
        node = tree
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value
        (self.folder / path).write_text(json.dumps(tree))

    def seal(self, checkpoint: str) -> None:
        """Make the manifest fit the files, as an attacker would."""
        folder = self.folder / checkpoint
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, entry in manifest["files"].items():
            data = (folder / name).read_bytes()
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    def frames(self, path: str, count: int) -> None:
        first, *rest = (Image.new("P", (3, 3), number % 7) for number in range(count))
        first.save(self.folder / path, save_all=True, append_images=rest)


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
    case = yaml.safe_load((CASES / name / "case.yaml").read_text(encoding="utf-8"))
    assert set(case) <= {"run", "says", "exit", "loads", "needs", "make", "warns"}, "an unknown key says nothing"
    here, needs = tmp_path / "here", case.get("needs", [])
    _lay_out(CASES / name, here)
    if "run" in needs:
        shutil.copytree(request.getfixturevalue("trained"), here / "run")
    if "base" in needs:
        shutil.copytree(tiny_llava, here / "base")
    shutil.copytree(CASES / name, here, dirs_exist_ok=True, ignore=shutil.ignore_patterns("case.yaml"))
    outside = _outside(tmp_path) if "outside" in needs else []
    for verb, *arguments in case.get("make", []):
        getattr(Maker(here), verb)(*arguments)
    before = _contents(here)
    _forget_reading(outside)
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
    assert not _strangers(watch.opened, tmp_path), "read outside the declared roots"
    assert not [path for path in outside if _was_read(path)], "read outside the declared roots"
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
    case = yaml.safe_load((CASES / name / "case.yaml").read_text(encoding="utf-8"))
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
    outside = _outside(tmp_path)
    _forget_reading(outside)
    with watch.watching():
        (tmp_path / "outside" / "secret.png").read_bytes()
        subprocess.run(["true"], check=True)
        with contextlib.suppress(OSError), socket.socket() as client:
            client.settimeout(0.01)
            client.connect(("127.0.0.1", 9))
        compile("1", str(tmp_path / "code.py"), "exec")
    assert _strangers(watch.opened, tmp_path)
    assert [event.split()[0] for event in watch.events][-1] == "socket.connect" and len(watch.events) >= 2
    assert str(tmp_path / "code.py") in watch.compiled


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


def _outside(folder: Path) -> list[Path]:
    (folder / "outside").mkdir()
    Image.new("RGB", (24, 16), "blue").save(folder / "outside" / "secret.png")
    return [folder / "outside" / "secret.png"]


def _forget_reading(paths: list[Path]) -> None:
    """Set the time of the last reading before that of the last change: then even `relatime` keeps book of a reading."""
    for path in paths:
        os.utime(path, (1, 2))


def _was_read(path: Path) -> bool:
    return path.stat().st_atime != 1


def _strangers(opened: list[str], folder: Path) -> list[str]:
    """Opened files that are neither the case's own nor those of Python and its packages."""
    own = (folder / "here", folder / "temporary")
    paths = {name: Path(os.path.abspath(os.path.join(folder / "here", name))) for name in opened}
    return [
        name
        for name, path in paths.items()
        if str(path) in FORBIDDEN
        or (
            not any(path.is_relative_to(root) for root in own)
            and (path.is_relative_to(folder) or not any(path.is_relative_to(root) for root in READABLE))
        )
    ]


def _contents(folder: Path) -> dict[str, Any]:
    """Path -> content of what may be read without waiting."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.stat().st_size < 2**28 else path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
