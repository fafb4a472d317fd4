"""The notebooks of `examples/` are executed, small and without traces of a machine; `make notebooks` executes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))
LARGEST = 120_000  # Bytes of a notebook with its outputs.
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def cells(name: str, kind: str) -> list[dict[str, Any]]:
    """The cells of one kind, each with its text under "source"."""
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    return [cell | {"source": "".join(cell["source"])} for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_holds_the_outputs_of_one_whole_run(name: str) -> None:
    code = cells(name, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = [(output["output_type"], output.get("name")) for cell in code for output in cell["outputs"]]
    assert kinds and not [kind for kind in kinds if kind == ("stream", "stderr") or kind[0] == "error"]
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text) < LARGEST
    assert not re.search(r"/(root|home|tmp|work|usr)/|site-packages", text)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_a_notebook_links_to_is_there(name: str) -> None:
    links = [link for cell in cells(name, "markdown") for link in LINK.findall(cell["source"])]
    assert links and all((EXAMPLES / link).exists() for link in links)


def test_the_adapter_in_plain_torch_is_mmdoras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook runs with two steps in place of thirty; its own assertions compare it with `mmdora.inject`."""
    monkeypatch.chdir(tmp_path)
    source = "\n".join(cell["source"] for cell in cells("adapter_in_torch.ipynb", "code"))
    assert source.count("range(30)") == 1 and source.count("assert") == 2
    known: dict[str, Any] = {}
    exec(compile(source.replace("range(30)", "range(2)"), "adapter_in_torch.ipynb", "exec"), known)
    assert known["adapted"] and (tmp_path / "runs/adapter_in_torch/adapter/adapter_model.safetensors").is_file()
