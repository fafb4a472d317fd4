"""`mmdora quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmdora.cli.app import Overrides, app


@app.command(sort_key=1)
def quickstart(
    *overrides: Overrides,
    family: Literal["llava", "vl-bart"] = "llava",
    base: str | None = None,
    out: Path | None = None,
    quick: bool = False,
    limit: int | None = None,
    demo: bool = True,
    port: int = 7860,
) -> None:
    """Adapt, evaluate, export and compare a real VLM on a laptop, in minutes.

    Takes the bundled tiny-llava, fine-tunes it on easy-VQA with LoRA and with DoRA, evaluates all
    three on the whole test split, exports both as merged checkpoints, writes a report and opens a
    page where the three answer side by side. What is complete is reused; Ctrl-C is safe.

    With `--family vl-bart` it is tiny-vlbart, on three tasks at once: easy-VQA, captions of drawn scenes,
    and statements on two pictures.

    With `--base NAME` it is a pretrained model of yours or of the hub, on easy-VQA. That needs the network once,
    if NAME is a hub id, and memory for the model: `--model.dtype bf16` halves it. On a CPU it takes hours.

    Config overrides, as in `mmdora train`, apply to both runs: `--training.steps 50`.

    Examples: `mmdora quickstart --no-demo`;
    `mmdora quickstart --base HuggingFaceTB/SmolVLM-256M-Instruct --out runs/smolvlm`

    Parameters
    ----------
    family
        Which bundled base is adapted, and to what.
    base
        Hub id or checkpoint folder of a vision-language model to adapt instead.
    out
        Folder for data, runs, checkpoints and report.html; default runs/quickstart, or that with the name of
        family or base, with "-quick" in the short form.
    quick
        The short form, two minutes on two idle cores: few training steps and 500 questions, which the report says.
    limit
        Evaluate on the first N test questions of each task only (a rehearsal; the report says so).
    demo
        Open the page at the end.
    port
        Port of the page on 127.0.0.1.
    """
    from mmdora.quickstart.run import quickstart as run

    run(out, family=family, base=base, overrides=overrides, quick=quick, limit=limit, port=port if demo else None)
