"""What a name on the command line stands for: a bundled base, a hub id, a checkpoint, an adapter or a run.

`locate` finds it once, where the name comes in; what follows passes the `Location` on and does not ask again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmdora.adapter_files.files import CONFIG, OURS, WEIGHTS, refuse_pickle
from mmdora.config import ImageTokens, validate
from mmdora.errors import MmdoraError
from mmdora.files import ordinary, read_json

ASSETS = Path(__file__).parent.parent / "assets"
RUN_CONFIG = "config.yaml"
"""The file of a run folder that holds the whole configuration of the run."""


@dataclass(frozen=True)
class Location:
    """What a name stands for.

    Attributes:
        name: as it was given.
        base: the name of the base: bundled, a hub id, or a checkpoint folder. It is `name` where that is no adapter.
        adapter: the folder of the adapter's files; None for a plain base.
        run: the folder of the run that the adapter lies in, if its config is there.
        image_tokens: how many tokens of each image the adapter was trained with.
    """

    name: str
    base: str
    adapter: Path | None
    run: Path | None
    image_tokens: ImageTokens

    @property
    def source(self) -> str:
        """What transformers opens the base by: a folder, which a bundled name is too, or a hub id."""
        return resolve(self.base)


def locate(name: str | Path) -> Location:
    """Find out what `name` is. Whatever holds no adapter is taken for a base; opening it shows whether it is one.

    Raises:
        MmdoraError: an adapter that is a pickle, whose files are damaged, or none of whose files names the base.
    """
    adapter = adapter_folder(name)
    if adapter is None:
        return Location(str(name), str(name), None, None, ImageTokens())
    run = adapter.parent if (adapter.parent / RUN_CONFIG).is_file() else None
    return Location(str(name), _base_of(adapter), adapter, run, image_tokens_of(adapter))


def bundled() -> tuple[str, ...]:
    """Names of the bases that this package carries."""
    return tuple(sorted(folder.parent.name for folder in ASSETS.glob("*/config.json")))


def resolve(name: str) -> str:
    """The folder of a bundled name; any other name unchanged."""
    return str(ASSETS / name) if name in bundled() else name


def adapter_folder(name: str | Path) -> Path | None:
    """The adapter that `name` is (an adapter folder) or holds (a run folder), or None.

    Raises:
        MmdoraError: the adapter is a pickle.
    """
    for folder in (Path(name), Path(name) / "adapter"):
        try:
            if (folder / WEIGHTS).is_file():
                return folder
        except (OSError, ValueError):  # the name is no path: it is too long, or has a NUL
            return None
        refuse_pickle(folder)
    return None


def image_tokens_of(adapter: Path) -> ImageTokens:
    """How many tokens of each image an adapter was trained with, from its own files.

    Raises:
        MmdoraError: the file is damaged.
    """
    if not (adapter / OURS).is_file():
        return ImageTokens()
    kept = read_json(adapter / OURS, "adapter's file").get("image_tokens") or {}
    return validate(ImageTokens, kept, where=lambda key: f"{adapter / OURS}: image_tokens")


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


def _base_of(adapter: Path) -> str:
    for file, key in ((OURS, "base"), (CONFIG, "base_model_name_or_path")):
        if (adapter / file).is_file() and isinstance(base := read_json(adapter / file, "adapter's file").get(key), str):
            return base
    raise MmdoraError(f"{adapter}: neither {OURS} nor {CONFIG} names the base model")
