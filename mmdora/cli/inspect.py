"""`mmdora inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from mmdora.cli.app import Flag, Overrides, app
from mmdora.cli.named import check_model
from mmdora.errors import MmdoraError


@app.command(sort_key=2)
def inspect(
    model: str,
    /,
    *overrides: Overrides,
    config: Path | None = None,
    data: Path | None = None,
    images: Path | None = None,
    processes: int = 1,
    strategy: Literal["ddp", "fsdp2", "zero2", "zero3"] = "ddp",
    trust_remote_code: Annotated[bool, Flag] = False,
) -> None:
    """Show a model's parts, what a config would train in it, and the memory that takes.

    Reads the model's config only: no weights are loaded, nothing is trained.

    With --data, instead: how long the rows of a file are in this model's tokens, the share of its images,
    the rows over the config's limit, and the padding that batches, grouping and packing would have.

    Examples: `mmdora inspect tiny-llava --config configs/tiny/dora.yaml --adapt.language.rank 16`;
    `mmdora inspect tiny-llava --data data/train.jsonl`

    Parameters
    ----------
    model
        Bundled name, hub id or checkpoint folder.
    config
        Config whose `adapt` section is planned; config overrides may follow.
    data
        Records to survey, with max_length, image_tokens and batch_size of the config.
    images
        Root of the image paths of --data; default: the config's, the card's, or the folder of the records.
    processes
        Devices that train together; the memory is that of each of them.
    strategy
        How they share the work; see docs/processes.md.
    trust_remote_code
        Run code that the checkpoint brings along.
    """
    check_model(model)
    from mmdora.config import load_config
    from mmdora.train import overview
    from mmdora.train.spread import Spread

    if config is None and overrides:
        raise MmdoraError(f"{overrides[0]}: config overrides need --config")
    if config is None and processes != 1:
        raise MmdoraError("--processes: the memory of a device needs a config (--config)")
    spread = Spread(processes, strategy)
    settings = load_config(config, overrides) if config else None
    if data is not None:
        return overview.show_data(model, data, images, settings, trust_remote_code=trust_remote_code)
    overview.show_model(model, settings, trust_remote_code=trust_remote_code, spread=spread)
