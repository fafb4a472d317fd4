"""`python docs/site_pages.py FOLDER` writes the sources of the site, plain Markdown, which MkDocs then builds.

They are the pages of `docs/`, a reference, and the files of the repository that pages link to. The reference is made
from the code: commands from their `--help`, config keys from the dataclasses, the Python functions from their
docstrings (mkdocstrings reads those). A file outside `docs/` that a page links to, such as a benchmark's result, goes
to `repository/`, because the site knows no address of the repository. Torch is not needed.
"""

from __future__ import annotations

import io
import posixpath
import re
import shutil
import sys
from pathlib import Path

from rich.console import Console

import mmdora
from mmdora.cli import app
from mmdora.cli.config_help import describe
from mmdora.config import MODALITIES

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)")
HELP_WIDTH = 100  # Columns of the help texts; a code block of the theme shows about as many.


def commands_page() -> str:
    """The help of every command, as the terminal shows it."""
    parts = [
        "# Commands\n\nEach text is what `mmdora COMMAND --help` prints; that of `train` is shown without its list of "
        "[config keys](config.md)."
    ]
    names = [name for name in app if not name.startswith("-")]
    for name in sorted(names, key=lambda name: app[name].sort_key or 0):
        shown = io.StringIO()
        app.help_print([name], console=Console(file=shown, width=HELP_WIDTH, color_system=None))
        text = shown.getvalue().split("╭─ Config: ")[0].strip("\n")
        parts.append(f"## mmdora {name}\n\n```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def config_page() -> str:
    """A table of keys for each section of a config."""
    modalities = ", ".join(f"`{modality}`" for modality in MODALITIES)
    parts = [
        "# Config keys\n\nThe keys of the YAML file that `mmdora train` takes. Any of them can be overridden on the "
        f"command line, as in `--adapt.language.rank 32`. MODALITY stands for {modalities}."
    ]
    for section, keys in describe().items():
        rows = [f"| `{key.name}` | {_cell(key.kind)} | {_cell(key.text)} |" for key in keys]
        parts.append("\n".join([f"## {section}\n", "| key | type | meaning and default |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def python_page() -> str:
    """The public names; mkdocstrings replaces each by its signature and docstring."""
    names = [name for name in mmdora.__all__ if not name.startswith("__")]
    return "# Python\n\nWhat `import mmdora` offers.\n\n" + "\n\n".join(f"::: mmdora.{name}" for name in names) + "\n"


def place_of(path: str) -> str:
    """The place in the site of a file of the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def moved(path: str) -> tuple[str, list[str]]:
    """A Markdown file of the repository with the links of the site, and the files outside `docs/` that it needs."""
    needed: list[str] = []

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        if not target.startswith("docs/"):
            needed.append(target)
        return match[1] + posixpath.relpath(place_of(target), posixpath.dirname(place_of(path)) or ".")

    return LINK.sub(link, (ROOT / path).read_text(encoding="utf-8")), needed


def write(folder: Path) -> None:
    """Write the sources to a folder of this program's own; what is in it is removed first."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("*.py", "*.md", "__pycache__"))
    (folder / "reference").mkdir()
    for name, text in (("commands", commands_page()), ("config", config_page()), ("python", python_page())):
        (folder / "reference" / f"{name}.md").write_text(text, encoding="utf-8")
    waiting = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("**/*.md"))]
    seen = set(waiting)
    for path in waiting:  # It grows while it is read.
        target = folder / place_of(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not path.endswith(".md"):
            shutil.copyfile(ROOT / path, target)
            continue
        text, needed = moved(path)
        target.write_text(text, encoding="utf-8")
        new = [file for file in dict.fromkeys(needed) if file not in seen and (ROOT / file).is_file()]
        waiting += new
        seen.update(new)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(Path(sys.argv[1]))
