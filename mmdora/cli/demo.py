"""`mmdora demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from mmdora.cli.app import Count, Flag, app
from mmdora.cli.named import check_model
from mmdora.demo.access import Access


@app.command(sort_key=6)
def demo(
    *models: str,
    access: Annotated[Access, Parameter(name="*", negative_bool=())] = Access(),  # noqa: B008 (a frozen value)
    queue: Count = 64,
    dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    quantize: Literal["nf4", "fp4", "int8", "none"] | None = None,
    device: str | None = None,
    shared_base: Annotated[bool, Flag] = False,
    votes: Path | None = None,
    results: Path | None = None,
    examples: Path | None = None,
    sessions: Path | None = None,
) -> None:
    """Open a page where one to four models answer the same question side by side.

    Without a model, it shows the bundled tiny-llava, and a LoRA and a DoRA of it that come with mmdora.

    Examples: `mmdora demo`;
    `mmdora demo base=tiny-llava lora=runs/quickstart/export/lora dora=runs/quickstart/export/dora`;
    `mmdora demo dora=out/dora served=openai:http://127.0.0.1:8000/v1#out/dora`

    Parameters
    ----------
    models
        NAME=MODEL, with a bundled name, hub id, checkpoint, adapter or run folder; or NAME=openai:URL#MODEL, a server.
    queue
        Questions waiting or running at most; one more is told that the page is busy.
    dtype
        Of the weights; default: the checkpoint's own.
    quantize
        Quantise the language part while it is read; default: as an adapter was trained, none: not at all.
    device
        Of the models, such as cpu or cuda:1; default: the GPU if there is one.
    shared_base
        Hold one base for all adapters on it, and switch them between answers.
    votes
        Append votes of blind comparisons to this JSONL file, with questions and answers, without addresses.
    results
        Folder with the runs and evaluations that "Look inside" shows, such as runs/quickstart.
    examples
        Records, or a folder of `mmdora prep`, that examples and "Many questions" are taken from; default: what a
        model's run held out, else easy-VQA's test split.
    sessions
        Keep conversations in this folder, with their pictures, and list each visitor's own; default: until the page
        ends. Links to conversations last 7 days.
    """
    for spec in models:
        name, _, model = spec.partition("=")
        if name and model and not model.startswith("openai:"):
            check_model(model.strip())
    access.check()
    from mmdora.demo.server import serve

    how: dict[str, Any] = {"dtype": dtype, "quantize": quantize, "device": device, "shared_base": shared_base}
    files: dict[str, Any] = {"votes": votes, "results": results, "examples": examples, "sessions": sessions}
    serve(models, access, queue=queue, **how, **files)
