"""Section `model`: the base that is adapted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, model_validator
from pydantic.dataclasses import dataclass

from mmdora.config.values import strict


@dataclass(frozen=True, kw_only=True, config=strict)
class Compose:
    """A LLaVA made of a tower and a language model; its projector is new."""

    vision: Annotated[
        str,
        Field(
            min_length=1,
            description="a CLIP's or SigLIP's hub id or folder, open_clip:NAME/TAG or open_clip:NAME/FILE; NAME ends in"
            " -quickgelu for OpenAI's weights in a file",
        ),
    ]
    language: Annotated[str, Field(min_length=1, description="and of this causal language model, a hub id or folder")]
    template: Annotated[
        Literal["own", "llava_v1"] | None,
        Field(description="of chats: the language model's or LLaVA's; default: its own if it has one"),
    ] = None


@dataclass(frozen=True, kw_only=True, config=strict)
class Quantize:
    """How linears of the base are quantised while it is loaded, by bitsandbytes."""

    type: Annotated[
        Literal["nf4", "fp4", "int8"], Field(description="of their weights: 4.1, 4.1 or 8 bits for each value")
    ] = "nf4"
    double: Annotated[
        StrictBool, Field(description="the scales of nf4 and fp4 are quantised too; without it 4.5 bits")
    ] = True
    compute: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        Field(description="dtype of their products; default: bf16 with training.precision bf16, else model.dtype"),
    ] = None
    only: Annotated[
        tuple[Literal["vision", "projector", "language"], ...],
        Field(min_length=1, description="modalities whose linears are quantised; heads and embeddings never are"),
    ] = ("language",)


@dataclass(frozen=True, kw_only=True, config=strict)
class Model:
    """The base that is adapted."""

    base: Annotated[str, Field(description="bundled name, hub id or folder")] = "tiny-llava"
    compose: Annotated[
        Compose | None,
        Field(description="instead of base: a LLaVA of vision and language, written to training.output/base"),
    ] = None
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], Field(description="of the frozen weights")] = "fp32"
    quantize: Annotated[
        Quantize | None,
        Field(description="quantise the base while it is loaded; or one word, its type: nf4, fp4 or int8"),
    ] = None
    # Runs of mmdora before 0.2 have no such key, and None is what a resume takes a missing one for.
    dequantize: Annotated[
        StrictBool | None, Field(description="read a base whose files are quantised as one that is not, in dtype")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _type_is_enough(cls, values: Any) -> Any:
        kwargs = getattr(values, "kwargs", values)
        if isinstance(kwargs, dict) and isinstance(kwargs.get("quantize"), str):
            kwargs["quantize"] = {"type": kwargs["quantize"]}
        return values

    @model_validator(mode="before")
    @classmethod
    def _one_base(cls, values: Any) -> Any:
        kwargs = getattr(values, "kwargs", values)
        if isinstance(kwargs, dict) and kwargs.get("compose") is not None and kwargs.setdefault("base", ""):
            raise ValueError("base and compose are two ways to name the base; leave one out")
        return values
