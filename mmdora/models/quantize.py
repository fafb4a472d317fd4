"""Quantised bases: quantises linears while a base is loaded, and knows the formats in which files may be quantised.

The linears are bitsandbytes's, and transformers puts them into the model. What is chosen here is which: the linears of
the named modalities that an adapter could be put on. Heads, embeddings, norms and routers stay as they are, and so does
every linear whose weight the model's code reads beside calling it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, FineGrainedFP8Config
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils.quantization_config import Mxfp4Config

from mmdora.adapt.modality import find_parts
from mmdora.adapt.quantized import quantized_by
from mmdora.adapt.switch import plan_of
from mmdora.adapt.targets import candidates_of
from mmdora.adapter_files.files import OURS
from mmdora.config import Quantize, validate
from mmdora.errors import MmdoraError
from mmdora.layers.dequantize import form_of
from mmdora.models.dtypes import DTYPES, DtypeName
from mmdora.models.locate import Location

NONE = "none"
"""The word that loads a base unquantised although its adapter was trained on a quantised one."""
INSTALL = "pip install 'mmdora[quantize]'"
ROLES = ("attention", "mlp", "linear")
"""Roles of the linears that are quantised."""
DEQUANTIZED = {"fp8": FineGrainedFP8Config, "mxfp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
"""Format of files -> the config by which transformers reads it as plain weights."""
READ = "bitsandbytes"
"""The format that adapters can be put on."""


def settings_of(quantize: Quantize | Mapping[str, Any] | str | None) -> Quantize | None:
    """The settings from one word, such as "nf4", or from a dict; None and "none" are None.

    Raises:
        MmdoraError: there is no such type or key.
    """
    if quantize is None or isinstance(quantize, Quantize):
        return quantize
    if isinstance(quantize, str):
        if quantize == NONE:
            return None
        quantize = {"type": quantize}
    return validate(Quantize, dict(quantize), where=lambda key: "quantize")


def check_installed(name: str) -> None:
    """Raise an MmdoraError if the library that quantises is not there."""
    if find_spec("bitsandbytes") is None:
        raise MmdoraError(f"model {name!r}: quantised weights need bitsandbytes; {INSTALL}")


def format_of(config: Any) -> str | None:
    """The format in which the weights in a checkpoint's files are quantised; None if they are not."""
    own = _settings_in(config)
    if own is None:
        return None
    values = own if isinstance(own, dict) else own.to_dict()
    method = values.get("quant_method") or READ
    return str(getattr(method, "value", method))


def _settings_in(config: Any) -> Any:
    """The settings of quantisation in a checkpoint's config, or in that of its language model; None without."""
    own = getattr(config, "quantization_config", None)
    return own or getattr(config.get_text_config(decoder=True), "quantization_config", None)


def put_in(model: nn.Module, name: str, quantize: Quantize | None, dtype: DtypeName, dequantize: bool) -> Any:
    """Put quantised linears into a model without memory, as transformers will when it reads the base's weights.

    Args:
        model: on the meta device, by the base's config.
        name: of the base, for errors.
        dtype: of the weights that are not quantised.
        dequantize: whether files that are quantised are read as plain weights.

    Returns:
        The config by which transformers quantises the base while it reads it, or dequantises it; None for neither.

    Raises:
        MmdoraError: the files are in a format that cannot be trained on, or are quantised already; nothing there can
            be quantised; or bitsandbytes is missing.
    """
    how = _reading(model, name, quantize, dtype, dequantize)
    if (how is not None or format_of(model.config) is not None) and not dequantize:
        as_quantized(model, how)
    return how


def _reading(model: nn.Module, name: str, quantize: Quantize | None, dtype: DtypeName, dequantize: bool) -> Any:
    held = format_of(model.config)
    if held is None:
        if dequantize:
            raise MmdoraError(f"model {name!r}: dequantize: its files are not quantised; leave it out")
        if quantize is None:
            return None
        check_installed(name)
        return _settings(quantize, _kept(name, model, quantize), dtype)
    if quantize is not None and not (dequantize and held in DEQUANTIZED):
        raise MmdoraError(f"model {name!r}: its files are quantised already ({held}); leave quantize out")
    if held == READ:
        check_installed(name)
        return None
    if dequantize and held in DEQUANTIZED:
        if quantize is not None:
            raise MmdoraError(f"model {name!r}: dequantize and quantize at once; export it dequantised first")
        return DEQUANTIZED[held](dequantize=True)
    way = "model.dequantize: true reads them as plain weights" if held in DEQUANTIZED else ""
    way = way or "load the checkpoint that it was made from, with model.quantize: nf4 if memory is short"
    raise MmdoraError(f"model {name!r}: its files are quantised by {held}, which adapters cannot be put on; {way}")


def as_quantized(model: nn.Module, settings: Any = None) -> None:
    """Put quantised linears into a model on the meta device, by these settings or those of its own config.

    Their weights have the shapes in which they are packed, but no memory: each is one number, expanded.
    """
    quantizer: Any = AutoHfQuantizer.from_config(settings or _settings_in(model.config), pre_quantized=False)
    quantizer.preprocess_model(model=model, device_map={"": "cpu"})
    for module in model.modules():
        if form_of(module) is not None:
            _pack(module)


def other_base(location: Location, model: Any) -> str | None:
    """The line about an adapter on weights that are quantised in another way than those it was trained on, or not.

    None if they are not, or if it is not known on what it was trained.
    """
    plan = plan_of(model)
    if plan is None or location.adapter is None or not (location.adapter / OURS).is_file():
        return None
    here = quantized_by(model, plan.parts)
    was, now = (own.type if own else "unquantised" for own in (location.quantize, here))
    if was == now:
        return None
    return (
        f"{location.adapter}: was trained on {was} weights and stands on {now} ones here, which are another base to "
        "it, so its answers differ; leave quantize out to have what it was trained on (docs/quantised.md)"
    )


def settle(model: nn.Module) -> None:
    """Keep bitsandbytes from writing 4-bit weights anew in evaluation, and from a warning in each layer's forward.

    On CPUs with bf16 units evaluation would take scales in bf16, which are another base than training has. The warning
    says that int8 products of fp32 or bf16 inputs are made in fp16, which they always are.
    """
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # pyright: ignore


def cast_rest(model: Any, dtype: torch.dtype) -> None:
    """Give the weights that are not packed their dtype, in a model whose files bitsandbytes quantised.

    transformers 5.24 leaves every tensor called `weight` in the dtype of its file there, and casts all others.
    """
    narrow = dtype != torch.float32
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())} if narrow else set()
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not kept.intersection(name.split(".")):
            parameter.data = parameter.data.to(dtype)


def saved_settings(model: Any) -> None:
    """Write the linears that were left out by their plain names into a model's config, as other tools expect them."""
    own = model.config.quantization_config
    own.llm_int8_skip_modules = [name.strip("^$").replace("\\", "") for name in own.llm_int8_skip_modules or ()]


def _kept(name: str, model: nn.Module, quantize: Quantize) -> list[str]:
    """Names of the linears that stay as they are."""
    parts = find_parts(model)
    chosen: set[str] = set()
    for modality in quantize.only:
        candidates = candidates_of(model, parts, modality)
        if candidates.experts or "experts" in candidates.roles.values():
            raise MmdoraError(
                f"model {name!r}: quantize: its experts are 3-D parameters, which bitsandbytes does not quantise; "
                f"leave {modality} out of model.quantize.only, or quantize out"
            )
        found = {n for n, role in candidates.roles.items() if role in ROLES}
        found = {n for n in found if type(model.get_submodule(n)) is nn.Linear}
        if not found:
            raise MmdoraError(f"model {name!r}: quantize: there is no linear to quantise in its {modality} part")
        chosen |= found
    linears = [n for n, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    return [n for n in linears if n not in chosen]


def _settings(quantize: Quantize, kept: list[str], dtype: DtypeName) -> BitsAndBytesConfig:
    # transformers takes a name for a pattern, and for the ending of other names. `^` and `$` allow neither.
    skipped = [f"^{re.escape(name)}$" for name in kept]
    if quantize.type == "int8":
        # The outliers of LLM.int8() (threshold 6) are features of what the layer reads, which are kept in fp16.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantize.type,
        bnb_4bit_use_double_quant=quantize.double,
        bnb_4bit_compute_dtype=DTYPES[quantize.compute or dtype],
        llm_int8_skip_modules=skipped,
    )


def _pack(module: Any) -> None:
    """Give a quantised linear on the meta device a weight and scales of the packed shapes, without memory."""
    import bitsandbytes

    bnb: Any = bitsandbytes
    rows, columns = module.out_features, module.in_features
    if form_of(module) == "int8":
        packed = _thin((rows, columns), torch.int8)
        module.weight = bnb.nn.Int8Params(packed, requires_grad=False, has_fp16_weights=False)
        module.state.CB, module.state.SCB = module.weight.data, _thin((rows,), torch.float32)
        return
    old = module.weight
    blocks = -(-rows * columns // old.blocksize)
    scales, second = _thin((blocks,), torch.uint8 if old.compress_statistics else torch.float32), None
    if old.compress_statistics:
        second = bnb.functional.QuantState(
            _thin((-(-blocks // 256),), torch.float32),
            code=_thin((256,), torch.float32),
            blocksize=256,
            dtype=torch.float32,
        )
    state = bnb.functional.QuantState(
        scales,
        shape=torch.Size([rows, columns]),
        code=_thin((16,), torch.float32),
        blocksize=old.blocksize,
        quant_type=old.quant_type,
        dtype=module.compute_dtype or torch.bfloat16,
        offset=_thin((), torch.float32) if second else None,
        state2=second,
    )
    module.quant_state = state
    module.weight = bnb.nn.Params4bit(
        _thin((-(-rows * columns // 2), 1), torch.uint8),
        quant_state=state,
        blocksize=old.blocksize,
        compress_statistics=old.compress_statistics,
        quant_type=old.quant_type,
        quant_storage=torch.uint8,
        bnb_quantized=True,
        module=module,
    )


def _thin(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros((), dtype=dtype, device="cpu").expand(shape)
