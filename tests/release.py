"""`python tests/release.py dist` checks what `make release` built: an sdist, and a wheel that works without the tree.

The wheel goes into a fresh environment without its dependencies; those come from the environment that runs this. Every
file of the package has to be in both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

from mmdora.version import __version__

ROOT = Path(__file__).parents[1]
COMMANDS = (["--version"], ["--help"], ["prep", "--list"], ["inspect", "tiny-llava"], ["env"])


def one(folder: Path, pattern: str) -> Path:
    """The only file of a pattern."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1 or f"-{__version__}" not in found[0].name:
        sys.exit(f"{folder}: expected one {pattern} of version {__version__}, found {[path.name for path in found]}")
    return found[0]


def package_files() -> set[str]:
    """The files of the package, those behind its links to top-level folders included."""
    files = {
        Path(folder, name).relative_to(ROOT).as_posix()
        for folder, _, names in os.walk(ROOT / "mmdora", followlinks=True)
        for name in names
        if "__pycache__" not in folder
    }
    return files


def check_works(wheel: Path) -> None:
    """Install the wheel alone into a fresh environment and run commands away from the tree."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        venv.create(home / "venv", with_pip=True)
        bin_ = home / "venv" / "bin"
        pip = [bin_ / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel.resolve()]
        # Beside a tree that PYTHONPATH names, pip would take the wheel for installed.
        subprocess.run(pip, check=True, env={key: own for key, own in os.environ.items() if key != "PYTHONPATH"})
        # PYTHONPATH reads no .pth file, so the editable installation of the tree is not seen.
        environment = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib"), "HF_HUB_OFFLINE": "1"}
        where = [bin_ / "python", "-c", "import mmdora; print(mmdora.__file__)"]
        found = subprocess.run(where, capture_output=True, text=True, cwd=home, env=environment)
        if found.returncode or not Path(found.stdout.strip()).is_relative_to(home):
            sys.exit(f"the wheel was not imported: {found.stdout}{found.stderr}")
        for command in COMMANDS:
            done = subprocess.run(
                [bin_ / "mmdora", *command], capture_output=True, text=True, cwd=home, env=environment
            )
            if done.returncode or (command == ["--version"] and done.stdout.strip() != __version__):
                sys.exit(f"mmdora {' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
            print(f"mmdora {' '.join(command)}: works")


def main(folder: Path) -> None:
    """Check both files."""
    wheel, sdist = one(folder, "*.whl"), one(folder, "*.tar.gz")
    files = package_files()
    if missing := files - set(zipfile.ZipFile(wheel).namelist()):
        sys.exit(f"{wheel.name} lacks {sorted(missing)}")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    if missing := {*files, "pyproject.toml", "README.md", "LICENSE"} - held:
        sys.exit(f"{sdist.name} lacks {sorted(missing)}")
    check_works(wheel)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
