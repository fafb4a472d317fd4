"""Opens models by a bundled name, a hub id, a checkpoint folder, an adapter or a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from mmdora.adapt.modality import is_text_only
from mmdora.adapt.quantized import dequantize_all
from mmdora.adapter_files.adapters import load_adapter
from mmdora.config import Compose, ImageTokens, Quantize, RunConfig, validate
from mmdora.errors import MmdoraError
from mmdora.models.agreement import check_agreement
from mmdora.models.chat_template import set_template
from mmdora.models.dtypes import DTYPES, DtypeName
from mmdora.models.image_tokens import set_image_tokens, set_in_model
from mmdora.models.locate import Location, adapter_folder, bundled, check_folder, lasting_name, locate, resolve
from mmdora.models.memory import check_memory, own_dtype
from mmdora.models.quantize import format_of, other_base, put_in, settings_of, settle


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
        image_tokens: budget of tokens for each image; by default the one that the adapter was trained with, or else the
            processor's own.
        template: chat template (Jinja) to write conversations by; by default the one that the adapter was trained with,
            or else the base's own.
        quantize: "nf4", "fp4" or "int8", or a dict of the keys of `model.quantize`, to quantise the base while it is
            read; None for what an adapter was trained on, "none" for weights that are not quantised.
        dequantize: whether files that are quantised (fp8, mxfp4, bitsandbytes) are read as plain weights in `dtype`.

    Returns:
        The model and its processor; that of a causal language model is its tokenizer.

    Raises:
        MmdoraError: if there is no such model, it is neither an image-text-to-text nor a causal language model, or
            memory is short for it.
    """
    if dtype is not None and dtype not in DTYPES:
        raise MmdoraError(f"dtype {dtype!r}: use one of {', '.join(DTYPES)}")
    if not isinstance(name, (str, Path, Location)):
        if quantize is not None:
            raise MmdoraError(
                "quantize: a base that is composed is quantised from its files; write it to a folder first"
            )
        model, processor = _composed(name, DTYPES[dtype or "fp32"], device, image_tokens)
        set_template(processor, template)
        return model, processor
    location = name if isinstance(name, Location) else locate(name)
    base = location.base
    processor, shapes = _checked(base, trust_remote_code, template or location.template)
    taken: Any = dtype or own_dtype(shapes.config)
    wanted = location.quantize if quantize is None and format_of(shapes.config) is None else settings_of(quantize)
    with _one_line(base):
        how = put_in(shapes, base, wanted, taken, dequantize)
    check_memory(base, shapes, taken, device)
    settings = set_image_tokens(processor, image_tokens or location.image_tokens)
    with no_bars(), _one_line(base):
        model, report = _read(location, DTYPES[taken], trust_remote_code, how, device)
        if absent := sorted(report["missing_keys"]):
            raise MmdoraError(
                f"model {base!r}: {len(absent)} tensors are missing in its files, such as {', '.join(absent[:3])}; "
                "transformers would fill them with random numbers"
            )
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
    """The model, and what transformers says of the tensors that it found.

    Args:
        how: the config by which they are quantised or dequantised; None where they are read as they are.
    """
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
) -> tuple[Any, Any]:
    from mmdora.models.llava.compose import compose  # Only a composed base needs this.

    if not isinstance(recipe, Compose):
        recipe = validate(Compose, dict(recipe), where=lambda key: "mmdora.load")
    model: Any
    model, processor = compose(recipe)
    set_image_tokens(processor, budget or ImageTokens())
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
    with no_bars(), _one_line(name):
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
    with _one_line(name):
        model = _on_meta(name, trust_remote_code)
        check_agreement(name, processor, model)
    return processor, model


def load_generation_config(name: str) -> GenerationConfig | None:
    """The generation config in a base's own file; None for a base without such a file."""
    try:
        return GenerationConfig.from_pretrained(resolve(name))
    except (OSError, ValueError):  # transformers raises these if there is no such file, or one that it cannot read.
        return None


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
    with _one_line(name):
        model = _on_meta(name, trust_remote_code)
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


def _on_meta(name: str, trust_remote_code: bool) -> Any:
    config = config_of(name, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return model_class(config).from_config(config, trust_remote_code=trust_remote_code)


def format_of_files(name: str) -> str | None:
    """The format in which the weights of a base are quantised in its files; None if they are not.

    Raises:
        MmdoraError: there is no such base, or it brings code of its own.
    """
    with _one_line(name):
        return format_of(config_of(name))


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


@contextmanager
def _one_line(name: str) -> Iterator[None]:
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
