"""`mmdora quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmdora.cli.app import Overrides, app


@app.command(sort_key=1)
def quickstart(
    *overrides: Overrides,
    family: Literal["llava", "vl-bart"] = "llava",
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

    Config overrides, as in `mmdora train`, apply to both runs: `--training.steps 50`.

    Example: `mmdora quickstart --no-demo`

    Parameters
    ----------
    family
        Which base is adapted, and to what.
    out
        Folder for data, runs, checkpoints and report.html; default runs/quickstart or runs/quickstart-vl-bart,
        with "-quick" in the short form.
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

    run(out, family=family, overrides=overrides, quick=quick, limit=limit, port=port if demo else None)
