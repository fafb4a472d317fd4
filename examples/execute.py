"""`python examples/execute.py [NAME …]` executes the notebooks of this folder and keeps their outputs in them.

What differs from run to run without meaning anything (times, versions, progress bars) is left out, so that a difference
in version control is a difference of results. A notebook that fails, or takes three minutes, ends it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent
LIMIT = 180  # Seconds on two idle cores.


def execute(path: Path) -> float:
    """Execute a notebook in its own folder and write it back; gives the seconds of processor time that it took."""
    notebook = nbformat.read(path, as_version=4)
    before = sum(os.times()[2:4])
    # A cell may wait long on a machine that does other things too.
    client = NotebookClient(
        notebook,
        timeout=3600,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": path.parent}},
    )
    client.execute()
    for cell in notebook.cells:
        for told in [output for output in cell.get("outputs", ()) if output.get("name") == "stderr"]:
            print(told["text"], file=sys.stderr)
            cell.outputs.remove(told)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    return sum(os.times()[2:4]) - before  # The kernel has ended, so its time counts as that of a child.


def main() -> None:
    chosen = [EXAMPLES / name for name in sys.argv[1:]] or sorted(EXAMPLES.glob("*.ipynb"))
    for path in chosen:
        print(path.name, "…", flush=True)
        begun = time.monotonic()
        seconds = execute(path)
        print(f"  {seconds:.0f} s of processor time, {time.monotonic() - begun:.0f} s in all", flush=True)
        if seconds > 2 * LIMIT:
            sys.exit(f"{path}: needs more than {LIMIT} s on two cores")


if __name__ == "__main__":
    main()
