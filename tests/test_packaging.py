"""The wheel carries what an installed mmdora needs, and what it imports is declared."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree without network or isolation."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=LEFT_OUT)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(folder / "tree"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(folder.glob("*.whl"))


def test_wheel_carries_every_file_of_the_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("demo", "data_prep", "configs"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert files
        for path in files:
            assert f"mmdora/{path.relative_to(ROOT).as_posix()}" in names
    for path in (ROOT / "mmdora").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT).as_posix() in names
    assert {"mmdora/quickstart/report.html.j2", "mmdora/assets/tiny-llava/model.safetensors"} <= names
    assert not [name for name in names if name.startswith(("tests/", "demo/", "benchmarks/")) or name.endswith(".pyc")]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert zipfile.ZipFile(wheel).read("mmdora/constraints.txt") == (ROOT / "constraints.txt").read_bytes()


def test_wheel_has_the_packages_version(wheel: Path) -> None:
    import mmdora

    assert wheel.name.startswith(f"mmdora-{mmdora.__version__}-")


def test_wheel_is_small_enough_to_bundle_a_base(wheel: Path) -> None:
    assert wheel.stat().st_size < 40e6


def test_an_installed_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import mmdora, sys; from pathlib import Path;"
        "assert Path(mmdora.__file__).is_relative_to(sys.argv[1]), mmdora;"
        "from mmdora.quickstart import report, work; from mmdora.quickstart.families import FAMILIES;"
        "from mmdora.cli import main;"
        "from mmdora.config import load_config; from mmdora.models.locate import bundled;"
        "assert {'tiny-llava', 'tiny-vlbart'} <= {*bundled()}; model, processor = mmdora.load('tiny-llava');"
        "[load_config(work.CONFIGS / f'{name}.yaml') for f in FAMILIES.values() for name in f.configs.values()];"
        "report.report_html(report.Report(title='t', lead='', verdict=[], tables={}));"
        "assert main(['prep']) == 0 and main(['env']) == 0"
    )
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(site)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_the_package_imports_is_declared() -> None:
    project = _project()
    extras = project["optional-dependencies"]
    needed = ("eval", "8bit", "quantize", "heic", "video")
    wanted = [*project["dependencies"], *(package for name in needed for package in extras[name])]
    declared = {re.split(r"[<>=!\[;]", text)[0].strip().lower().replace("-", "_") for text in wanted}
    providers = packages_distributions()
    # used only where they are there: torch brings triton, lmms-eval calls its plug-in, DeepSpeed launched the run
    elsewhere = {"mmdora", "triton", "lmms_eval", "deepspeed"}
    for path in [p for name in ("mmdora", "demo", "data_prep") for p in (ROOT / name).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - elsewhere:
                owners = {owner.lower().replace("-", "_") for owner in providers.get(top, [top])}
                assert owners & declared, (
                    f"{path.relative_to(ROOT)} imports {top}, which pyproject.toml does not declare"
                )


def test_the_lock_names_every_dependency_within_its_bounds_and_no_other_platforms() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    locked = {canonicalize_name(Requirement(line).name): Requirement(line) for line in pinned}
    assert len(locked) == len(pinned) and all(re.fullmatch(r"[\w.\-]+==[\w.!]+", line) for line in pinned)
    project = _project()
    extras = project["optional-dependencies"]
    installed = ("dev", "browser", "docs", "release", "notebooks")
    for text in [*project["dependencies"], *(text for name in installed for text in extras[name])]:
        wanted = Requirement(text)
        [exact] = locked[canonicalize_name(wanted.name)].specifier
        assert wanted.specifier.contains(exact.version), f"{text} in pyproject.toml, {exact} in constraints.txt"
    assert not [name for name in locked if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_the_floor_has_every_dependency_once_at_its_lower_bound() -> None:
    command = [sys.executable, str(ROOT / "tests/versions.py"), "floor"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    project = _project()
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert [line.replace("==", ">=") for line in lines] == wanted


def test_the_site_needs_the_command_line_and_its_own_tools_alone() -> None:
    command = [sys.executable, str(ROOT / "tests/versions.py"), "docs"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert set(_project()["optional-dependencies"]["docs"]) < set(lines)
    assert not [line for line in lines if line.startswith(("torch", "transformers", "gradio"))]
    # What `mmdora.cli` imports is what the site's environment has; no other module is loaded for the help.
    code = (
        "import importlib, pkgutil, sys; import mmdora.cli, mmdora.cli.config_help\n"
        "for m in pkgutil.iter_modules(mmdora.cli.__path__): importlib.import_module(f'mmdora.cli.{m.name}')\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "numpy", "PIL", "datasets", "gradio"} & set(loaded)


def test_dependencies_have_lower_bounds_and_the_changelog_has_the_version() -> None:
    import mmdora

    project = _project()
    for text in project["dependencies"]:
        assert ">=" in text and "<" not in text and "==" not in text, text
    assert project["dynamic"] == ["version"]
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").count(f"## [{mmdora.__version__}]") == 1
