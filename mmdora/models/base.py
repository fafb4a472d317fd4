"""What the config of a base tells: the class of its model, its shapes without memory, how its files are quantised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from mmdora.adapt.modality import is_text_only
from mmdora.adapter_files.files import adapter_folder
from mmdora.config import Quantize, RunConfig
from mmdora.errors import MmdoraError
from mmdora.models.dtypes import DtypeName
from mmdora.models.locate import bundled, check_folder, resolve
from mmdora.models.quantize import format_of, put_in


def config_of(name: str, *, trust_remote_code: bool = False) -> Any:
    """The config of a base, by the class of its architecture."""
    return AutoConfig.from_pretrained(resolve(name), trust_remote_code=trust_remote_code)


def model_class(config: Any) -> Any:
    """The Auto class of transformers that builds and loads the model of a config.

    Raises:
        MmdoraError: if the architecture is neither an image-text-to-text nor a causal language model.
    """
    if is_text_only(config):
        return AutoModelForCausalLM
    named = getattr(config, "auto_map", None) or {}
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or "AutoModelForImageTextToText" in named:
        return AutoModelForImageTextToText
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise MmdoraError(
            f"model {config.name_or_path!r}: {config.model_type!r} reads pictures, but the installed transformers has "
            "no image-text-to-text class for it (AutoModelForImageTextToText), so it cannot be trained or asked here"
        )
    raise MmdoraError(
        f"model {config.name_or_path!r}: its architecture {config.model_type!r} is neither an image-text-to-text nor a "
        "causal language model of the installed transformers"
    )


def format_of_files(name: str) -> str | None:
    """The format in which the weights of a base are quantised in its files; None if they are not.

    Raises:
        MmdoraError: there is no such base, or it brings code of its own.
    """
    with one_line(name):
        return format_of(config_of(name))


def skeleton(
    name: str,
    *,
    trust_remote_code: bool = False,
    dtype: DtypeName = "fp32",
    quantize: Quantize | None = None,
    dequantize: bool = False,
) -> Any:
    """The model `name` with its shapes but without memory: each parameter is one zero, expanded.

    Only the config of the model is read.

    Args:
        dtype, quantize and dequantize: as for `load`.

    Raises:
        MmdoraError: if there is no such model, or if it is an adapter; or in the cases of `put_in`.
    """
    if adapter_folder(name) is not None:
        raise MmdoraError(f"{name}: is an adapter; inspect its base, or read the plan.txt of its run")
    with one_line(name):
        model = on_meta(name, trust_remote_code)
        put_in(model, name, quantize, dtype, dequantize)
    zeros: dict[int, nn.Parameter] = {}  # The key is the identity of a parameter, so that tied ones stay tied.
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if not parameter.is_floating_point():
                continue  # It is packed, and is one number already.
            zero = nn.Parameter(torch.zeros((), dtype=parameter.dtype).expand(parameter.shape), requires_grad=False)
            setattr(module, leaf, zeros.setdefault(id(parameter), zero))
    return model


def skeleton_of(config: RunConfig | None, name: str | None = None, *, trust_remote_code: bool = False) -> Any:
    """The skeleton of a config's base, quantised as the config says; or of the base `name`, without a config."""
    if config is None:
        return skeleton(name or "", trust_remote_code=trust_remote_code)
    own: Any = config.model
    return skeleton(
        name or config.base,
        trust_remote_code=trust_remote_code,
        dtype=own.dtype,
        quantize=config.quantize,
        dequantize=bool(own.dequantize),
    )


def on_meta(name: str, trust_remote_code: bool) -> Any:
    """The model of a base on the meta device, by its config."""
    config = config_of(name, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return model_class(config).from_config(config, trust_remote_code=trust_remote_code)


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Turn the errors of transformers about a base into an MmdoraError of one line that says how to mend them."""
    try:
        check_folder(folder := Path(resolve(name)))
        yield
    except MmdoraError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if "trust_remote_code" in reason or "custom code" in reason:
            reason = "it brings code of its own, run only by mmdora inspect, train and eval with --trust-remote-code"
        elif "safetensors" in reason and any(folder.glob("pytorch_model*.bin")):
            reason = (
                "its weights are a pickle (pytorch_model.bin), which can run code when read; convert it where you "
                "trust it: AutoModelForImageTextToText.from_pretrained(FOLDER).save_pretrained(NEW), and copy its "
                "other files"
            )
        known = ", ".join(bundled())
        raise MmdoraError(
            f"model {name!r}: cannot be loaded as a folder, a hub id or a bundled name ({known}): {reason}"
        ) from None
