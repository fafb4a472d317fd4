"""Finds the files of the base of an export, and chooses those that are copied unchanged."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import snapshot_download

from mmdora.errors import MmdoraError
from mmdora.models.dtypes import DtypeName, dtype_in_config
from mmdora.models.locate import check_folder, resolve

COPIED = (
    *("tokenizer*", "*_tokenizer/*", "vocab*", "merges.txt", "*.model", "added_tokens.json", "special_tokens_map.json"),
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    *("chat_template.*", "additional_chat_templates/*.jinja", "generation_config.json", "LICENSE*"),
)
"""Files that no run changes. They are copied from the base byte for byte, because files that transformers writes anew
differ, and some loaders cannot read them."""
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")


def base_folder(base: str) -> Path:
    """The folder with the files of a base, given as a folder, a bundled name, or a hub id, which is downloaded.

    Raises:
        MmdoraError: if `base` is none of these.
    """
    folder = Path(resolve(base))
    if folder.is_dir():
        check_folder(folder)
        return folder
    try:
        return Path(snapshot_download(base, allow_patterns=[*COPIED, *WEIGHTS, "*.json", "README.md"]))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise MmdoraError(f"{base}: no folder, no bundled model, and not to be had from the hub: {reason}") from None


def copied_files(base: Path) -> list[Path]:
    """The files of a base that an export copies.

    Raises:
        MmdoraError: if one of them is a link that leads out of the folder.
    """
    copied = sorted({path for pattern in COPIED for path in base.glob(pattern) if path.is_file()})
    # In the hub's cache the files of a snapshot are links to blobs beside it. A link to any other place is refused,
    # because copying it would publish a file that lies there.
    home = base.resolve()
    home = home.parents[1] if home.parent.name == "snapshots" else home
    if strangers := [path for path in copied if not path.resolve().is_relative_to(home)]:
        raise MmdoraError(f"{strangers[0]}: a link that leads outside {base}; put the file itself there")
    return copied


def dtype_of(base: Path) -> DtypeName:
    """The dtype of a base's weights, as its config names it.

    Raises:
        MmdoraError: if there is no readable config.
    """
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise MmdoraError(f"{base}: no readable config.json; give a run, an adapter or a checkpoint") from None
    return dtype_in_config(config.get("dtype") or config.get("torch_dtype"))
