"""What every dataset's module has to have, and that the command line takes its own examples."""

import pkgutil
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mmdora.data_prep
from mmdora.cli import app

NAMES = sorted(module.name for module in pkgutil.iter_modules(mmdora.data_prep.__path__))


@pytest.mark.parametrize("name", NAMES)
def test_a_module_tells_what_it_reads(name: str):
    module = import_module(f"mmdora.data_prep.{name}")
    assert name.replace("_", "-") == module.NAME and module.LICENCE and module.SOURCE
    assert isinstance(module.UNVERIFIED, tuple) and all(isinstance(note, str) for note in module.UNVERIFIED)
    if name not in ("easy_vqa", "scenes", "digits"):
        example = re.search(r"Example: `mmdora (.*?)`", " ".join(module.prepare.__doc__.split()))
        assert example, "prepare's docstring needs an example"
        command, bound, _ = app.parse_args(shlex.split(example[1]), exit_on_error=False, print_error=False)
        assert command is module.prepare
        assert bound.kwargs["inputs"].files and isinstance(bound.arguments["out"], Path)


def test_workers_start_without_torch():
    code = (
        "\n".join(f"import mmdora.data_prep.{name}" for name in NAMES) + "\nimport sys; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
