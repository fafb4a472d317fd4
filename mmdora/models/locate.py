"""Finds out what a name stands for: a bundled base, a hub id, a checkpoint, an adapter or a run.

`locate` does so once, where the name comes in. All later code is given the `Location` and does not ask again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from mmdora.adapter_files.files import CONFIG, OURS, adapter_folder, own_facts
from mmdora.config import Data, ImageTokens, Quantize, RunConfig, TaskData, as_modalities, validate
from mmdora.errors import MmdoraError
from mmdora.files import ordinary, read_json

ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = {"LoRA": ASSETS / "easy-vqa" / "lora", "DoRA": ASSETS / "easy-vqa" / "dora"}
"""The adapters of tiny-llava that come with this package (`make shipped-adapters`), by method."""
OPEN_CLIP = "open_clip:"
"""How the name of a tower of open_clip begins."""
ADDRESS = re.compile(r"[a-z][a-z0-9]+:/")
"""How an address begins that is no path of this machine; `Path` has made one slash of two."""
RUN_CONFIG = "config.yaml"
"""The file in a run folder that holds the whole configuration of the run."""


@dataclass(frozen=True)
class Location:
    """The base, and the adapter and run if there are any, that a name stands for.

    Attributes:
        name: the name as it was given.
        base: name of the base: a bundled name, a hub id, or a checkpoint folder. It is `name` if that is no adapter.
        adapter: folder with the adapter's files; None for a plain base.
        run: folder of the run that the adapter belongs to; None if there is no such folder with a config.
        image_tokens: budget of tokens per image that the adapter was trained with.
        template: chat template that it was trained with; None if that is the base's own.
        quantize: how the base was quantised while it was loaded for training; None if it was not.
    """

    name: str
    base: str
    adapter: Path | None
    run: Path | None
    image_tokens: ImageTokens
    template: str | None = None
    quantize: Quantize | None = None

    @property
    def source(self) -> str:
        """The folder or hub id by which transformers can open the base; for a bundled name it is a folder."""
        return resolve(self.base)


def locate(name: str | Path) -> Location:
    """Find out what `name` stands for. A name without an adapter is taken for a base; opening it will tell.

    Raises:
        MmdoraError: if the adapter is a pickle, if its files are damaged, or if none of them names the base.
    """
    adapter = adapter_folder(name)
    if adapter is None:
        return Location(str(name), str(name), None, None, ImageTokens())
    run = adapter.parent if (adapter.parent / RUN_CONFIG).is_file() else None
    own = image_tokens_of(adapter), _template_of(adapter), _quantize_of(adapter)
    return Location(str(name), _base_of(adapter), adapter, run, *own)


def bundled() -> tuple[str, ...]:
    """The names of the bases that come with this package."""
    return tuple(sorted(folder.parent.name for folder in ASSETS.glob("*/config.json")))


def resolve(name: str) -> str:
    """The folder of a bundled name; any other name unchanged."""
    return str(ASSETS / name) if name in bundled() else name


def lasting_name(name: str) -> str:
    """A name of a base that means the same from any folder: of a folder its absolute path; any other unchanged."""
    try:
        is_folder = name not in bundled() and Path(name).is_dir()
    except ValueError:  # No path may hold a NUL character, but the name does.
        return name
    return str(Path(name).absolute()) if is_folder else name


def with_lasting_paths(config: RunConfig) -> RunConfig:
    """The config with names of bases by `lasting_name` and absolute paths, so that it means the same from any folder.

    The run folder, `training.output`, stays as it is; `save` makes that absolute too.
    """
    model, data = config.model, config.data
    if model.compose is None:
        model = replace(model, base=lasting_name(model.base))
    else:
        parts = {key: _lasting_part(getattr(model.compose, key)) for key in ("vision", "language")}
        model = replace(model, compose=replace(model.compose, **parts))
    tasks = data.tasks and {name: replace(task, **_lasting_files(task)) for name, task in data.tasks.items()}
    own = {key: lasting_path(getattr(data, key)) for key in ("feature_cache", "template")}
    data = replace(data, tasks=tasks, **own, **_lasting_files(data))
    starts = {name: replace(how, start=lasting_path(how.start)) for name, how in as_modalities(config.adapt).items()}
    return replace(config, model=model, data=data, adapt=replace(config.adapt, **starts))


def _lasting_files(section: Data | TaskData) -> dict[str, Path | None]:
    return {key: lasting_path(getattr(section, key)) for key in ("train", "eval", "images")}


def lasting_path(path: Path | None) -> Path | None:
    """The absolute path; an address such as `hf://…`, which a stream may read, is one already."""
    return path if path is None or ADDRESS.match(str(path)) else path.absolute()


def _lasting_part(name: str) -> str:
    """A part of a composed base; `open_clip:NAME/FILE` names a file behind its first slash."""
    kind, slash, file = name.partition("/")
    if kind.startswith(OPEN_CLIP) and slash:
        return f"{kind}/{Path(file).absolute()}" if Path(file).is_file() else name
    return lasting_name(name)


def image_tokens_of(adapter: Path) -> ImageTokens:
    """The budget of tokens per image that an adapter was trained with, from its own files.

    Raises:
        MmdoraError: if the file is damaged.
    """
    if not (adapter / OURS).is_file():
        return ImageTokens()
    kept = own_facts(adapter).get("image_tokens") or {}
    return validate(ImageTokens, kept, where=lambda key: f"{adapter / OURS}: image_tokens")


def _template_of(adapter: Path) -> str | None:
    template = own_facts(adapter).get("chat_template") if (adapter / OURS).is_file() else None
    if not isinstance(template, str | None):
        raise MmdoraError(f"{adapter / OURS}: chat_template is no text; restore the file")
    return template


def _quantize_of(adapter: Path) -> Quantize | None:
    kept = own_facts(adapter).get("quantize") if (adapter / OURS).is_file() else None
    return None if kept is None else validate(Quantize, kept, where=lambda key: f"{adapter / OURS}: quantize")


def check_folder(folder: Path) -> None:
    """Raise an MmdoraError if a checkpoint's folder is not safe to read.

    It must hold no special file (a pipe would make a reader wait), and no index may name files outside of the folder.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.is_dir():
            ordinary(path, "file of a checkpoint")
    for path in folder.glob("*.index.json"):
        places = read_json(path, "index of weights").get("weight_map")
        for shard in set(places.values()) if isinstance(places, dict) else ():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise MmdoraError(f"{path}: names {shard!r:.80}, which is no file of this folder")


def _base_of(adapter: Path) -> str:
    """The name of an adapter's base, from the first of its files that has one.

    Raises:
        MmdoraError: none has one; or it is a path, and there is no such folder.
    """
    for file, key in ((OURS, "base"), (CONFIG, "base_model_name_or_path")):
        if not (adapter / file).is_file():
            continue
        values = own_facts(adapter) if file == OURS else read_json(adapter / file, "adapter's file")
        if not isinstance(base := values.get(key), str):
            continue
        composed = adapter.parent / "base"
        if _is_path(base) and not Path(base).exists():
            # A composed base lies in the folder of its run, which may have been moved.
            if Path(base).name == "base" and (composed / "config.json").is_file():
                return str(composed.absolute())
            seen = "here" if Path(base).is_absolute() else f"as seen from {Path.cwd()}"
            raise MmdoraError(
                f"{adapter / file}: its {key} is {base}, and there is no such folder {seen}; "
                "write there where the base lies now"
            )
        return base
    raise MmdoraError(f"{adapter}: neither {OURS} nor {CONFIG} names the base model")


def _is_path(name: str) -> bool:
    """Whether a name can only be a path on this machine: a hub id has one slash and no leading dot."""
    return "://" not in name and (name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name)
