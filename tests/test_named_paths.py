"""What the documents name is there: files of the repository, links, modules, commands with `python -m`."""

from __future__ import annotations

import itertools
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("mmdora", "demo", "data_prep", "configs", "benchmarks", "tests", "docs", "examples")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        *("*.md", "Makefile", "docs/**/*.md", "benchmarks/**/*.md", "configs/**/*.yaml", "mmdora/assets/*/README.md"),
        *("mmdora/**/*.py", "demo/*.py", "data_prep/**/*.py", "benchmarks/*.py"),
    )
    for path in ROOT.glob(pattern)
)
PATH = re.compile(rf"(?<![\w./~:-])(?:{'|'.join(FOLDERS)})(?:/[\w.*{{}},-]*[\w*}}])+")
"""A path that begins with a folder of the repository; it may hold `*` and `{a,b}`."""
SOURCE_FILE = re.compile(r"(?<![\w./*{}<-])[\w/]+\.py\b")
"""A Python file, named as a reader would find it: `compare.py`, or `llava/tower.py`."""
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
MODULE = re.compile(r"(?<![\w./-])mmdora(?:\.[A-Za-z_]\w*)+(?![\w/])")
RUN_AS_MODULE = re.compile(r"\bpython -m (mmdora[\w.]*)")
NOT_MODULES = ("mmdora.json", "mmdora.copy", "mmdora.save", "mmdora.show", "mmdora.keep", "mmdora.filter")
"""A file, and the functions of the page's script."""
NOT_OURS = ("convert_hf_to_gguf.py", "convert_image_encoder_to_gguf.py")
"""Files of llama.cpp; `mmdora export --for llama.cpp` prints commands that call them."""
LLAVA = re.compile(r"docs/(Data|Evaluation|Finetune_Custom_Data)\.md")
"""Documents of LLaVA's repository, which our code cites as sources."""


TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
"""A test, named by its file and its function."""

PLACEHOLDER = "NAME"
"""Stands for a name that the reader chooses, in the steps of CONTRIBUTING; what its line names need not exist."""


def exists(path: str) -> bool:
    """Whether each spelling of a path is there: `a/{b,c}.py` is `a/b.py` and `a/c.py`, and `*` is anything."""
    parts = re.split(r"\{([^{}]*)\}", path)
    choices = (part.split(",") if number % 2 else [part] for number, part in enumerate(parts))
    return all(any(ROOT.glob("".join(chosen))) for chosen in itertools.product(*choices))


def is_there(name: str) -> bool:
    """Whether `mmdora.a.b` is a module, or an attribute of one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            if find_spec(".".join(parts[:cut])) is None:
                continue
        except ModuleNotFoundError:
            continue
        if cut == len(parts):
            return True
        value = import_module(".".join(parts[:cut]))
        for attribute in parts[cut:]:
            if not hasattr(value, attribute):
                return False
            value = getattr(value, attribute)
        return True
    return False


def no_tests(text: str) -> list[str]:
    """The tests that a text names and that are not in their files."""
    return [
        f"{file}::{name}"
        for file, name in TEST.findall(text)
        if not (ROOT / file).is_file() or not re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.M)
    ]


def dead(document: Path) -> list[str]:
    """What a document names and is not there."""
    text = document.read_text(encoding="utf-8")
    text = "".join(line for line in text.splitlines(keepends=True) if PLACEHOLDER not in line)
    missing = [path for path in PATH.findall(text) if not LLAVA.fullmatch(path) and not exists(path)]
    missing += [name for name in MODULE.findall(text) if name not in NOT_MODULES and not is_there(name)]
    missing += [name for name in RUN_AS_MODULE.findall(text) if not is_there(name)]
    missing += no_tests(text)
    if document.suffix == ".md":
        missing += [link for link in LINK.findall(text) if not (document.parent / link).exists()]
        missing += [f for f in SOURCE_FILE.findall(text) if f not in NOT_OURS and not any(ROOT.glob(f"**/{f}"))]
    return missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_is_there(document):
    assert dead(ROOT / document) == []


def test_what_is_not_there_is_found(tmp_path):
    """The test of the test: each kind of name, once dead and once alive."""
    (tmp_path / "a.md").write_text(
        "`configs/tiny/{dora,nothing}.yaml`, demo/*.py, demo/*.nothing, [a](b.md), [b](a.md), `compare.py`, "
        "`nowhere.py`, mmdora.load, mmdora.nothing, mmdora.train.run.nothing, mmdora.train.run.train, "
        "`python -m mmdora`, `python -m mmdora.nowhere`, tests/test_html.py::test_nothing, "
        "tests/test_named_paths.py::test_what_is_not_there_is_found"
    )
    assert dead(tmp_path / "a.md") == [
        *("configs/tiny/{dora,nothing}.yaml", "demo/*.nothing", "mmdora.nothing", "mmdora.train.run.nothing"),
        *("mmdora.nowhere", "mmdora.nowhere", "tests/test_html.py::test_nothing", "b.md", "nowhere.py"),
    ]
