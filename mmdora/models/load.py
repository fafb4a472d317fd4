"""Opens models by a bundled name, a hub id, a checkpoint folder, an adapter or a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from mmdora.adapt.quantized import dequantize_all
from mmdora.adapter_files.adapters import load_adapter
from mmdora.config import Compose, ImageTokens, Quantize, validate
from mmdora.errors import MmdoraError
from mmdora.models.agreement import check_agreement
from mmdora.models.base import config_of, model_class, on_meta, one_line
from mmdora.models.chat_template import set_template
from mmdora.models.dtypes import DTYPES
from mmdora.models.image_tokens import set_image_tokens, set_in_model
from mmdora.models.locate import Location, lasting_name, locate, resolve
from mmdora.models.memory import check_memory, own_dtype
from mmdora.models.quantize import cast_rest, format_of, other_base, put_in, settings_of, settle


def load(
    name: str | Path | Location | Compose | Mapping[str, Any],
    *,
    dtype: str | None = "fp32",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    image_tokens: ImageTokens | None = None,
    template: str | None = None,
    quantize: Quantize | Mapping[str, Any] | str | None = None,
    dequantize: bool = False,
) -> tuple[Any, Any]:
    """Open a model and its processor, ready for inference (`eval()` mode).

    Args:
        name: bundled name, hub id, checkpoint folder, or adapter or run folder (which gives base plus adapter); or the
            `Location` that `locate` gives for one of these. Or a recipe to compose a model with a new projector:
            {"vision": "open_clip:ViT-L-14-336/openai", "language": "Qwen/Qwen2.5-0.5B-Instruct"}.
        dtype: "fp32", "bf16" or "fp16" for the weights, whatever dtype the file has; None for the file's own.
        device: device to put the model on; None leaves it on the CPU.
        trust_remote_code: whether to run code that a checkpoint brings along.
        image_tokens: budget of tokens for each image; by default that of the adapter's training, else the processor's.
        template: chat template (Jinja) of conversations; by default that of the adapter's training, else the base's.
        quantize: "nf4", "fp4" or "int8", or a dict of the keys of `model.quantize`, to quantise the base while it is
            read; None for what an adapter was trained on, "none" for weights that are not quantised.
        dequantize: whether files that are quantised (fp8, mxfp4, bitsandbytes) are read as plain weights in `dtype`.

    Returns:
        The model and its processor; that of a causal language model is its tokenizer.

    Raises:
        MmdoraError: there is no such model, it is no image-text-to-text or causal language model, or memory is short.
    """
    if dtype is not None and dtype not in DTYPES:
        raise MmdoraError(f"dtype {dtype!r}: use one of {', '.join(DTYPES)}")
    if not isinstance(name, (str, Path, Location)):
        if quantize is not None:
            raise MmdoraError("quantize: a composed base is quantised from its files; write it to a folder first")
        return _composed(name, DTYPES[dtype or "fp32"], device, image_tokens, template)
    location = name if isinstance(name, Location) else locate(name)
    base = location.base
    processor, shapes = _checked(base, trust_remote_code, template or location.template)
    taken: Any = dtype or own_dtype(shapes.config)
    wanted = location.quantize if quantize is None and format_of(shapes.config) is None else settings_of(quantize)
    with one_line(base):
        how = put_in(shapes, base, wanted, taken, dequantize)
    check_memory(base, shapes, taken, device)
    settings = set_image_tokens(processor, image_tokens or location.image_tokens)
    model = _read(location, DTYPES[taken], trust_remote_code, how, device)
    if dequantize and format_of(model.config) is not None:
        dequantize_all(model, DTYPES[taken])
    settle(model)
    set_in_model(model, settings)
    model.name_or_path = lasting_name(base)
    if location.adapter is not None:
        load_adapter(model, location.adapter)
        if (line := other_base(location, model)) is not None:
            warnings.warn(line, UserWarning, stacklevel=2)
    if device is not None:
        model.to(device)
    return model.eval(), processor


def _read(
    location: Location, dtype: torch.dtype, trust_remote_code: bool, how: Any, device: str | torch.device | None
) -> Any:
    """The model with all its weights.

    Args:
        how: the config by which they are quantised or dequantised; None where they are read as they are.
    """
    base = location.base
    with one_line(base), no_bars():
        model, report = _from_files(location, dtype, trust_remote_code, how, device)
    if absent := sorted(report["missing_keys"]):
        raise MmdoraError(
            f"model {base!r}: {len(absent)} tensors are missing in its files, such as {', '.join(absent[:3])}; "
            "transformers would fill them with random numbers"
        )
    if how is None and format_of(model.config) is not None:
        cast_rest(model, dtype)
    return model


def _from_files(
    location: Location, dtype: torch.dtype, trust_remote_code: bool, how: Any, device: str | torch.device | None
) -> Any:
    """The model, and what transformers says of the tensors that it found."""
    config = config_of(location.base, trust_remote_code=trust_remote_code)
    # Weights are quantised where they will be. Without a place transformers would take a GPU.
    place: Any = {} if how is None and format_of(config) is None else {"device_map": {"": str(device or "cpu")}}
    if how is not None:
        place["quantization_config"] = how  # None would be taken for a base that is not quantised.
    return model_class(config).from_pretrained(
        location.source,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        **place,
    )


def _composed(
    recipe: Compose | Mapping[str, Any],
    dtype: torch.dtype,
    device: str | torch.device | None,
    budget: ImageTokens | None,
    template: str | None,
) -> tuple[Any, Any]:
    from mmdora.models.llava.compose import compose  # Only a composed base needs this.

    if not isinstance(recipe, Compose):
        recipe = validate(Compose, dict(recipe), where=lambda key: "mmdora.load")
    model: Any
    model, processor = compose(recipe)
    set_image_tokens(processor, budget or ImageTokens())
    set_template(processor, template)
    return model.to(device=device, dtype=dtype), processor


def load_processor(
    name: str,
    *,
    trust_remote_code: bool = False,
    image_tokens: ImageTokens | None = None,
    template: str | None = None,
) -> Any:
    """Open the processor of a base without its model; that of a causal language model is its tokenizer.

    Args:
        template: chat template to write conversations by; None leaves the base's own.

    Raises:
        MmdoraError: if there is no such model, it has no processor, or the processor cannot keep within `image_tokens`.
    """
    with no_bars(), one_line(name):
        of_text = model_class(config_of(name, trust_remote_code=trust_remote_code)) is AutoModelForCausalLM
        kind = AutoTokenizer if of_text else AutoProcessor
        processor = kind.from_pretrained(resolve(name), trust_remote_code=trust_remote_code)
    set_template(processor, template)
    set_image_tokens(processor, image_tokens or ImageTokens())
    return processor


def check_base(name: str, *, trust_remote_code: bool = False, template: str | None = None) -> Any:
    """Open the processor of a base and check that it fits the model, of which only the config is read.

    Args:
        template: as in `load_processor`.

    Raises:
        MmdoraError: if there is no such base, or in the cases of `check_agreement`.
    """
    return _checked(name, trust_remote_code, template)[0]


def _checked(name: str, trust_remote_code: bool, template: str | None) -> tuple[Any, Any]:
    """The processor of a base, and its model on the meta device, after `check_base`."""
    processor = load_processor(name, trust_remote_code=trust_remote_code, template=template)
    with one_line(name):
        model = on_meta(name, trust_remote_code)
        check_agreement(name, processor, model)
    return processor, model


def load_generation_config(name: str) -> GenerationConfig | None:
    """The generation config in a base's own file; None for a base without such a file."""
    try:
        return GenerationConfig.from_pretrained(resolve(name))
    except (OSError, ValueError):  # transformers raises these if there is no such file, or one that it cannot read.
        return None


@contextmanager
def no_bars() -> Iterator[None]:
    """Hide transformers' own progress bars inside the block.

    The bars count tensors, so they mislead: a tensor of 13 GB moves the bar as far as one of 2 kB.
    """
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()
