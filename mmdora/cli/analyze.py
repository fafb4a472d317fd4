"""`mmdora analyze`."""

from __future__ import annotations

from pathlib import Path

from mmdora.cli.app import app, named_models
from mmdora.errors import MmdoraError
from mmdora.outputs.folder import check_finished


@app.command(sort_key=6.5)
def analyze(*runs: str, out: Path | None = None) -> None:
    """Show how far training moved each weight in magnitude and in direction, by modality and layer.

    The weight-decomposition analysis of the DoRA paper, for LoRA, DoRA and full fine-tuning, over all checkpoints
    of each run. Reads files only, a tensor at a time; no model is loaded. Writes decomposition.csv, pictures and
    analysis.html.

    Example: `mmdora analyze runs/quickstart/lora runs/quickstart/dora --out runs/analysis`

    Parameters
    ----------
    runs
        Run folders or adapter folders, PEFT's too; NAME=RUN gives a name.
    out
        Folder to write to; default: `analysis` in the run, or runs/analysis for several.
    """
    if not runs:
        raise MmdoraError("analyze: name at least one run folder, or an adapter's")
    from rich.console import Console

    from mmdora.analysis import run as analysis
    from mmdora.analysis.findings import correlations, verdicts
    from mmdora.analysis.spread import spreads
    from mmdora.analysis.table import analysis_table

    named = named_models(runs)
    for run in named.values():
        check_finished(Path(run))
    out = out or (Path("runs/analysis") if len(named) > 1 else Path(*named.values()) / "analysis")
    rows = analysis.analyze(named, out=out)
    console = Console()
    console.print(analysis_table(rows))
    for line in (*verdicts(correlations(rows)), *map(str, spreads(rows))):
        console.print(line, markup=False, highlight=False)
    console.print(f"{out / 'analysis.html'}", markup=False, highlight=False)
