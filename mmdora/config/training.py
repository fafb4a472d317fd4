"""Section `training`: the optimisation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt
from pydantic.dataclasses import dataclass

from mmdora.config.values import Number, Positive, Rate, Share, strict


@dataclass(frozen=True, kw_only=True, config=strict)
class Training:
    """The optimisation."""

    output: Annotated[Path, Field(description="run folder")] = Path("runs/run")
    steps: Annotated[Positive | None, Field(le=10**9, description="optimizer steps; instead of epochs")] = None
    epochs: Annotated[Number, Field(gt=0, le=1e6)] = 1.0
    batch_size: Annotated[Positive, Field(description="rows per forward pass and process")] = 8
    accumulation: Annotated[Positive, Field(description="forward passes per optimizer step")] = 1
    lr: Annotated[Rate, Field(description="peak learning rate")] = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[Rate, Field(description="steps, or a share of them when below 1")] = 0.03
    weight_decay: Rate = 0.0
    optimizer: Annotated[
        Literal["adamw", "adamw_8bit"], Field(description="adamw_8bit: moments in 8 bits; CUDA and bitsandbytes")
    ] = "adamw"
    adam_beta2: Share = 0.999
    adam_eps: Rate = 1e-8
    max_grad_norm: Rate = 1.0
    precision: Annotated[Literal["fp32", "bf16"], Field(description="of the computation (autocast)")] = "fp32"
    find_batch_size: Annotated[
        StrictBool,
        Field(description="out of memory: halve the micro-batch and go on, with as many rows per step"),
    ] = False
    gradient_checkpointing: Annotated[
        StrictBool | tuple[Literal["vision", "language"], ...],
        Field(description="activations are computed again in backward; or of these modalities: [language]"),
    ] = False
    chunked_loss: Annotated[
        StrictBool,
        Field(description="logits of labelled positions only, in chunks: the same loss, less memory"),
    ] = True
    log_every: Positive = 10
    eval_every: Annotated[Positive | None, Field(description="steps; needs data.eval")] = None
    early_stopping: Annotated[
        Positive | None, Field(description="evaluations in turn without a better result, after which the run ends")
    ] = None
    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio"], ...], Field(description="beside log.jsonl")
    ] = ("tensorboard",)
    save_every: Annotated[Positive | None, Field(description="steps between checkpoints")] = None
    keep: Annotated[Positive, Field(description="checkpoints kept, besides the best")] = 2
    on_nonfinite: Annotated[
        Literal["stop", "skip"],
        Field(description="when loss or gradient norm is not finite: end the run, or leave out the step"),
    ] = "stop"
    max_skipped: Annotated[Positive, Field(description="steps left out before the run ends all the same")] = 10
    seed: Annotated[StrictInt, Field(ge=0, lt=2**31)] = 0
