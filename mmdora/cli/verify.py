"""`mmdora verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmdora.cli.app import Count, app
from mmdora.cli.named import check_model


@app.command(sort_key=6.2)
def verify(
    model: str,
    /,
    *,
    server: str,
    base: str | None = None,
    data: Path | None = None,
    images: Path | None = None,
    limit: Count = 16,
    max_tokens: Count = 64,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> None:
    """Ask a checkpoint and its server the same questions, and name the first difference.

    Example: `mmdora verify exports/dora --server http://127.0.0.1:8000/v1`

    Parameters
    ----------
    model
        The exported folder, opened here.
    server
        URL of an OpenAI-compatible server (vLLM, SGLang), http://HOST:PORT/v1, with #NAME if it serves several models.
    base
        The checkpoint's base; asked too, it tells whether the server answers as the base does.
    data
        Records whose first questions are asked; default: pictures of the easy-VQA test split.
    images
        Root of the image paths of --data.
    limit
        Questions at most.
    max_tokens
        Of an answer.
    dtype
        Of the weights here: the server's, for equal answers.
    """
    check_model(model)
    if base is not None:
        check_model(base)
    from mmdora.export.verify import summary
    from mmdora.export.verify import verify as run

    how = {"data": data, "images": images, "limit": limit, "max_new_tokens": max_tokens, "dtype": dtype}
    print(summary(run(model, server, base=base, **how)))
