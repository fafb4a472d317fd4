"""The versions that are tested: `python tests/versions.py floor` prints the lowest, `lock` those of this environment.

`make test-floor` installs what `floor` prints; `make lock` writes what `lock` prints to constraints.txt. `docs` prints
what `make docs` installs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

_FILE = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, BUILD = _FILE["project"], _FILE["build-system"]
PINNED_BY_TORCH = re.compile(r"(nvidia|cuda)-|triton==")
"""What torch requires on Linux alone, mostly in exact versions; here it would force Linux's choice on others."""
HEADER = """\
# Exact versions with which `make test` passes. Written by `make lock`, installed by every other make target.
# These are constraints: a package that a platform does not need is not installed there.
"""


def floor() -> list[str]:
    """The direct dependencies, those of development included, each at its lower bound."""
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    if loose := [text for text in wanted if not re.fullmatch(r"[\w.\-\[\]]+>=[\d.]+", text)]:
        sys.exit(f"pyproject.toml: give one lower bound, and nothing else, to {', '.join(loose)}")
    return [text.replace(">=", "==") for text in wanted]


def docs() -> list[str]:
    """What the site needs: the tools, and of mmdora's dependencies those with which `mmdora --help` runs."""
    help_needs = ("cyclopts", "packaging", "pydantic", "PyYAML", "rich")
    ours = [text for text in PROJECT["dependencies"] if text.partition(">=")[0] in help_needs]
    return [*ours, *PROJECT["optional-dependencies"]["docs"], BUILD["requires"][0]]


def lock() -> list[str]:
    """Everything that is installed beside this Python, but mmdora itself and what torch pins.

    A release that exists for the lowest supported Python exists for newer ones too, and not the other way round.
    """
    lowest = PROJECT["requires-python"].removeprefix(">=")
    if lowest != (running := "{}.{}".format(*sys.version_info)):
        sys.exit(f"the lock is made on the lowest Python that is supported: {lowest}, not {running}")
    command = [sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable"]
    frozen = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    if odd := [line for line in frozen if not re.fullmatch(r"[\w.\-]+==[\w.+!]+", line)]:
        sys.exit(f"installed from other places than a package index: {'; '.join(odd)}")
    # A local version such as torch's +cpu is one build among several of a release.
    return [line.partition("+")[0] for line in frozen if not PINNED_BY_TORCH.match(line.lower())]


if __name__ == "__main__":
    if sys.argv[1:] == ["floor"]:
        print("\n".join(floor()))
    elif sys.argv[1:] == ["docs"]:
        print("\n".join(docs()))
    elif sys.argv[1:] == ["lock"]:
        print(HEADER + "\n".join(lock()))
    else:
        sys.exit(__doc__)
