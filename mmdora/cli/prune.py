"""`mmdora prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mmdora.cli.app import Count, app
from mmdora.cli.named import check_model
from mmdora.outputs.folder import check_new_folder


@app.command(sort_key=5.5)
def prune(
    model: str,
    out: Path,
    /,
    *,
    method: Literal["wanda", "magnitude"] = "wanda",
    sparsity: float = 0.5,
    pattern: Literal["row", "2:4"] = "row",
    only: Annotated[tuple[Literal["vision", "projector", "language"], ...], Parameter(consume_multiple=True)] = (
        "language",
    ),
    data: Path | None = None,
    images: Path | None = None,
    rows: Count = 128,
    device: str | None = None,
) -> None:
    """Set a share of the weights of a checkpoint's linear layers to zero, and write an ordinary checkpoint.

    Weights are compared within a row, that is, one output. Heads, embeddings and routers stay as they are.
    `pruning.json` in the new folder says what was done. An adapter that is merged into a pruned base fills its zeros.

    Examples: `mmdora prune tiny-llava out/half --sparsity 0.5 --data data/train.jsonl`;
    `mmdora prune tiny-llava out/half --method magnitude --pattern 2:4 --only language vision`

    Parameters
    ----------
    model
        Bundled name, hub id or checkpoint folder.
    out
        New or empty folder.
    method
        wanda: magnitude times the norm of the input that the weight multiplies, over --data; magnitude: that alone.
    sparsity
        Share of each row that is set to zero.
    pattern
        row: any weights of a row; 2:4: two of every four neighbours, which some GPUs multiply faster.
    only
        Parts whose linear layers are pruned.
    data
        Records to measure inputs on.
    images
        Root of the image paths of --data; default: the card's, or the folder of the records.
    rows
        The most records that are measured on.
    device
        To measure on, such as cuda; default: the CPU.
    """
    check_model(model)
    check_new_folder(out)
    from mmdora.export.prune import prune_checkpoint
    from mmdora.records.reader import read_records

    records = None if data is None else read_records(data, images)
    prune_checkpoint(
        model, out, method=method, sparsity=sparsity, pattern=pattern, only=only, records=records, limit=rows,
        device=device,
    )  # fmt: skip
