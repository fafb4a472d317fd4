"""Opening models: a bundled name, a hub id, a checkpoint folder, an adapter or a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from mmdora.adapter_files.adapters import load_adapter
from mmdora.adapter_files.files import CONFIG, OURS, WEIGHTS, refuse_pickle
from mmdora.config import Compose, ImageTokens, validate
from mmdora.errors import MmdoraError
from mmdora.files import ordinary, read_json
from mmdora.models.image_tokens import set_image_tokens, set_in_model

ASSETS = Path(__file__).parent.parent / "assets"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def bundled() -> tuple[str, ...]:
    """Names of the bases that this package carries."""
    return tuple(sorted(folder.parent.name for folder in ASSETS.glob("*/config.json")))


def resolve(name: str) -> str:
    """The folder of a bundled name; any other name unchanged."""
    return str(ASSETS / name) if name in bundled() else name


def adapter_folder(name: str | Path) -> Path | None:
    """The adapter that `name` is (an adapter folder) or holds (a run folder), or None."""
    for folder in (Path(name), Path(name) / "adapter"):
        try:
            if (folder / WEIGHTS).is_file():
                return folder
        except (OSError, ValueError):  # not a path: too long, a NUL
            return None
        refuse_pickle(folder)
    return None


def base_of(adapter: Path) -> str:
    """The name of the base an adapter was trained on, from its own files.

    Raises:
        MmdoraError: if none of them names it.
    """
    for file, key in ((OURS, "base"), (CONFIG, "base_model_name_or_path")):
        if (adapter / file).is_file() and isinstance(base := read_json(adapter / file, "adapter's file").get(key), str):
            return base
    raise MmdoraError(f"{adapter}: neither {OURS} nor {CONFIG} names the base model")


def load(
    name: str | Path | Compose | Mapping[str, Any],
    *,
    dtype: str = "fp32",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    image_tokens: ImageTokens | None = None,
) -> tuple[Any, Any]:
    """Open a model and its processor, ready for inference (`eval()` mode).

    Args:
        name: bundled name, hub id, checkpoint folder, or adapter/run folder (base plus adapter). Or what to compose:
            {"vision": "open_clip:ViT-L-14-336/openai", "language": "Qwen/Qwen2.5-0.5B-Instruct"}; the projector is new.
        dtype: "fp32", "bf16" or "fp16" for the weights, whatever the file holds.
        device: where to put the model; None leaves it on the CPU.
        trust_remote_code: run code that a checkpoint brings along; off unless you ask.
        image_tokens: of each image; default: what the adapter was trained with, else the processor's own.

    Raises:
        MmdoraError: if there is no such model, or it is no image-text-to-text model.
    """
    if dtype not in DTYPES:
        raise MmdoraError(f"dtype {dtype!r}: use one of {', '.join(DTYPES)}")
    if not isinstance(name, (str, Path)):
        return _composed(name, DTYPES[dtype], device, image_tokens)
    adapter = adapter_folder(name)
    base = base_of(adapter) if adapter is not None else str(name)
    bars = is_progress_bar_enabled()
    disable_progress_bar()  # one line a tensor; shards of a large model take long, but say nothing useful either
    try:
        processor = load_processor(base, trust_remote_code=trust_remote_code)
        settings = set_image_tokens(processor, image_tokens or image_tokens_of(adapter))
        with _one_line(base):
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                resolve(base),
                dtype=DTYPES[dtype],
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
            model, found = loaded
            if absent := sorted(found["missing_keys"]):
                raise MmdoraError(
                    f"model {base!r}: {len(absent)} tensors are missing in its files, such as {', '.join(absent[:3])}; "
                    "transformers would fill them with random numbers"
                )
    finally:
        if bars:
            enable_progress_bar()
    set_in_model(model, settings)
    model.name_or_path = base
    if adapter is not None:
        load_adapter(model, adapter)
    if device is not None:
        model.to(device)
    return model.eval(), processor


def _composed(
    recipe: Compose | Mapping[str, Any],
    dtype: torch.dtype,
    device: str | torch.device | None,
    budget: ImageTokens | None,
) -> tuple[Any, Any]:
    from mmdora.models.llava.compose import compose  # imports what only a composed base needs

    if not isinstance(recipe, Compose):
        recipe = validate(Compose, dict(recipe), where=lambda key: "mmdora.load")
    model: Any
    model, processor = compose(recipe)
    set_image_tokens(processor, budget or ImageTokens())
    return model.to(device=device, dtype=dtype), processor


def load_processor(name: str, *, trust_remote_code: bool = False, image_tokens: ImageTokens | None = None) -> Any:
    """The processor of a base alone.

    Raises:
        MmdoraError: if there is no such model, it has no processor, or that cannot keep to `image_tokens`.
    """
    with _one_line(name):
        processor = AutoProcessor.from_pretrained(resolve(name), trust_remote_code=trust_remote_code)
    set_image_tokens(processor, image_tokens or ImageTokens())
    return processor


def image_tokens_of(adapter: Path | None) -> ImageTokens:
    """What an adapter was trained with, from its own files."""
    if adapter is None or not (adapter / OURS).is_file():
        return ImageTokens()
    kept = read_json(adapter / OURS, "adapter's file").get("image_tokens") or {}
    return validate(ImageTokens, kept, where=lambda key: f"{adapter / OURS}: image_tokens")


def skeleton(name: str, *, trust_remote_code: bool = False) -> Any:
    """The model `name` with its shapes and no memory (each parameter is one expanded zero); reads its config only.

    Raises:
        MmdoraError: if there is no such model, or it is an adapter.
    """
    if adapter_folder(name) is not None:
        raise MmdoraError(f"{name}: is an adapter; inspect its base, or read the plan.txt of its run")
    with _one_line(name):
        config = AutoConfig.from_pretrained(resolve(name), trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    zeros: dict[int, nn.Parameter] = {}  # by identity, so that tied parameters stay tied
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            zero = nn.Parameter(torch.zeros((), dtype=parameter.dtype).expand(parameter.shape), requires_grad=False)
            setattr(module, leaf, zeros.setdefault(id(parameter), zero))
    return model


def check_folder(folder: Path) -> None:
    """Raise if a checkpoint's folder holds what would make a reader wait, or an index of shards that lie elsewhere."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.is_dir():
            ordinary(path, "file of a checkpoint")
    for path in folder.glob("*.index.json"):
        places = read_json(path, "index of weights").get("weight_map")
        for shard in set(places.values()) if isinstance(places, dict) else ():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise MmdoraError(f"{path}: names {shard!r:.80}, which is no file of this folder")


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """What transformers says of a base it cannot open, as one line with what to do about it."""
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
