"""Every block of the documents is executed, or its commands are parsed as the command line parses them.

A block of Python that needs no server is run. Of a block of shell, each line `mmdora …` is parsed against the command's
real options, the config of `mmdora train` is loaded with its overrides, and each make target is there.
"""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from mmdora.cli import app
from mmdora.cli.prep import datasets_app
from mmdora.config import load_config
from mmdora.config.load import config_of
from mmdora.data_prep.table import DATASETS

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_COMMANDS = {
    "CONTRIBUTING.md": ("config ─▶ load base", "cli/                        a file"),
    "docs/data.md": ('{"id": "7", "images"', '{"id": "8", "videos"'),
    "docs/models.md": ("Below is an instruction",),
    "docs/serving.md": ("location / {",),
}
"""Blocks that hold something else than commands, by how they begin."""
NEEDS_A_SERVER = "from gradio_client import"
"""How the one block of Python begins that asks a running page; tests/demo/test_app.py asks one in the same way."""
RUN_BY = {"docs/python.md": "tests/test_api.py", "docs/trainers.md": "tests/train/test_other_trainers.py"}
"""Documents whose Python needs a setting that another test makes; here these blocks are compiled only."""
OTHERS = {
    "git": "the clone from which the reader starts",
    "pip": "the installation; the Makefile's own line is run by every target",
    "ruff": "`make lint` runs it",
    "pyright": "`make lint` runs it",
    "lint-imports": "`make lint` runs it",
    "pytest": "`make test` runs it",
    "scontrol": "SLURM, which was not available",
    "vllm": "an engine; `make serve-test` starts it with these options, by its module",
}
"""Commands of others: the first word of a line -> why no test parses it."""
PLACEHOLDERS = {"CONFIG", "MODEL", "RUN", "OUT", "BASE", "FOLDER", "NAME"}


class Block(NamedTuple):
    """A fenced block of a document."""

    document: str
    language: str
    text: str


def blocks() -> list[Block]:
    """All fenced blocks, in the order of documents and lines."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        Block(path.relative_to(ROOT).as_posix(), language, text)
        for path in paths
        for language, text in FENCE.findall(path.read_text(encoding="utf-8"))
    ]


def lines(block: Block) -> list[list[str]]:
    """The commands of a block as words, without comments; `a && b` is two commands."""
    whole = block.text.replace("\\\n", " ")
    found = (part.strip() for line in whole.splitlines() for part in line.split(" && "))
    return [words for part in found if (words := shlex.split(part, comments=True))]


def command_problem(words: list[str]) -> str | None:
    """What is wrong with a command in the documents; None if it parses."""
    first, *rest = words
    if asked := re.fullmatch(r"\w+=\$\((\w+)", first):  # What another command prints, as in `a=$(command …)`.
        return None if asked[1] in OTHERS else f"nothing executes or parses {asked[1]!r}"
    if re.fullmatch(r"[A-Za-z_]+=.*", first):  # A variable of the command behind it, if there is one.
        return command_problem(rest) if rest else None
    if "mmdora" in words and first in ("torchrun", "accelerate", "srun"):  # A launcher, whose own options end there.
        return command_problem(words[words.index("mmdora") :])
    if first == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return None if rest and rest[0] in targets else f"no make target {rest[:1]}"
    if first in ("python", ".") or first.endswith("/pip"):
        module = rest[rest.index("-m") + 1] if "-m" in rest else None
        # `. .venv/bin/activate`, a script whose path test_named_paths checks, or a module.
        known = module is None or module == "sglang.launch_server" or find_spec(module) is not None
        return None if known else f"no module {module}"
    if first in OTHERS or first == "cd":
        return None
    if first != "mmdora":
        return f"nothing executes or parses {first!r}"
    if rest and rest[0].startswith("--"):
        return None if rest in (["--version"], ["--help"]) else f"no option {rest}"
    if rest[0] == "prep" and not rest[1].startswith("-") and rest[1] not in DATASETS:
        return f"no dataset {rest[1]!r}"
    parser = datasets_app() if rest[0] == "prep" else app
    try:
        parser.parse_args(rest, exit_on_error=False, print_error=False)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if rest[0] == "train" and rest[1] not in PLACEHOLDERS:
        options = [word for word in rest[2:] if word not in ("--resume", "--dry-run")]
        load_config(ROOT / rest[1], options)
    return None


def is_commands(block: Block) -> bool:
    """Whether a block holds commands."""
    return not block.language and not block.text.startswith(NOT_COMMANDS.get(block.document, ()))


def test_every_command_in_the_documents_parses() -> None:
    shown = [(block.document, words) for block in blocks() if is_commands(block) for words in lines(block)]
    problems = [(document, " ".join(words), found) for document, words in shown if (found := command_problem(words))]
    assert not problems
    assert len([words for _, words in shown if words[0] == "mmdora"]) > 30


@pytest.mark.parametrize(
    "line",
    ["mmdora eval --dtap x", "mmdora trian c", "make nothing", "python -m nowhere", "mmdora prep no", "ls x"],
)
def test_a_command_that_is_not_there_is_found(line: str) -> None:
    with_error = command_problem(shlex.split(line))
    assert with_error


def test_blocks_that_hold_no_commands_are_there() -> None:
    for document, starts in NOT_COMMANDS.items():
        texts = [block.text for block in blocks() if block.document == document]
        assert all(any(text.startswith(start) for text in texts) for start in starts), document


def test_the_python_of_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks are run in order and in one folder: a later one may load what an earlier one saved."""
    monkeypatch.chdir(tmp_path)
    ran = 0
    for block in blocks():
        if block.language != "python":
            continue
        code = compile(block.text, block.document, "exec")
        if block.document not in RUN_BY and not block.text.startswith(NEEDS_A_SERVER):
            exec(code, {})
            ran += 1
    assert {block.language for block in blocks()} == {"", "python", "yaml"}
    assert all((ROOT / test).is_file() for test in RUN_BY.values())
    assert ran and (tmp_path / "out/adapter/adapter_model.safetensors").is_file()


def test_the_yaml_of_the_documents_is_part_of_a_config() -> None:
    whole = yaml.safe_load((ROOT / "configs" / "tiny" / "dora.yaml").read_text())
    for block in blocks():
        if block.language == "yaml":
            part = yaml.safe_load(block.text)
            own = {key: {**({} if key == "adapt" else whole[key]), **values} for key, values in part.items()}
            config = config_of({**whole, **own})
            if "model" in part:
                assert config.quantize is not None and config.quantize.type == "nf4"
            else:
                assert config.adapt.rank == "auto" or config.adapt.gates is not None
