"""Section `model`: the base that is adapted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
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
class Model:
    """The base that is adapted."""

    base: Annotated[str, Field(description="bundled name, hub id or folder")] = "tiny-llava"
    compose: Annotated[
        Compose | None,
        Field(description="instead of base: a LLaVA of vision and language, written to training.output/base"),
    ] = None
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], Field(description="of the frozen weights")] = "fp32"

    @model_validator(mode="before")
    @classmethod
    def _one_base(cls, values: Any) -> Any:
        kwargs = getattr(values, "kwargs", values)
        if isinstance(kwargs, dict) and kwargs.get("compose") is not None and kwargs.setdefault("base", ""):
            raise ValueError("base and compose are two ways to name the base; leave one out")
        return values
