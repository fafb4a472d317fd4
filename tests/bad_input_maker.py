"""Makes files that git cannot hold: the steps of `make` in a case of `bad_inputs/`."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import pickle
import shutil
import socket
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import tiff
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmdora.adapter_files.files import FREE
from mmdora.files import CHECKSUM, with_checksum


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch CANARY",)


class Maker:
    """The verbs of `make`, written as [verb, path, …]; paths are relative to the working directory."""

    def __init__(self, folder: Path):
        self.folder = folder

    def fifo(self, path: str) -> None:
        os.mkfifo(self.folder / path)

    def socket(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(self.folder):
            listener.bind(path)

    def symlink(self, path: str, target: str) -> None:
        (self.folder / path).unlink(missing_ok=True)
        (self.folder / path).symlink_to(target)

    def delete(self, path: str) -> None:
        found = self.folder / path
        shutil.rmtree(found) if found.is_dir() else found.unlink()

    def copy(self, source: str, path: str) -> None:
        found = self.folder / source
        shutil.copytree(found, self.folder / path) if found.is_dir() else shutil.copyfile(found, self.folder / path)

    def sparse(self, path: str, size: int) -> None:
        """Make a file of `size` bytes that takes no room on the disk."""
        with (self.folder / path).open("wb") as file:
            file.truncate(size)

    def cut(self, path: str, size: int) -> None:
        os.truncate(self.folder / path, size)

    def flip(self, path: str, place: int) -> None:
        """Change one byte."""
        data = bytearray((self.folder / path).read_bytes())
        data[place] ^= 255
        (self.folder / path).write_bytes(data)

    def write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text, encoding="utf-8")

    def mode(self, path: str, bits: int) -> None:
        (self.folder / path).chmod(bits)

    def update(self, path: str, values: dict[str, Any]) -> None:
        """Set keys of a JSON object."""
        self._write_json(path, json.loads((self.folder / path).read_text()) | values)

    def _write_json(self, path: str, tree: dict[str, Any]) -> None:
        """Write a JSON object; the checksum of one that had one fits again, as an attacker would make it fit."""
        sealed = with_checksum({k: v for k, v in tree.items() if k != CHECKSUM}, FREE) if CHECKSUM in tree else tree
        (self.folder / path).write_text(json.dumps(sealed))

    def replace(self, path: str, old: str, new: str) -> None:
        text = (self.folder / path).read_text()
        assert old in text
        (self.folder / path).write_text(text.replace(old, new))

    def drop_tensors(self, path: str, count: int) -> None:
        tensors = load_file(self.folder / path)
        save_file({name: tensors[name] for name in sorted(tensors)[count:]}, self.folder / path, {"format": "pt"})

    def other_weights(self, path: str) -> None:
        """Change the numbers in a file, but not its names and shapes."""
        tensors = load_file(self.folder / path)
        changed = {name: t + 0.01 if t.is_floating_point() else t for name, t in tensors.items()}
        save_file(changed, self.folder / path, {"format": "pt"})

    def not_finite(self, path: str) -> None:
        tensors = load_file(self.folder / path)
        save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}, self.folder / path)

    def as_pickle(self, path: str, target: str) -> None:
        """Replace a safetensors file by a harmless file of torch.save with the same tensors."""
        torch.save(load_file(self.folder / path), self.folder / target)
        (self.folder / path).unlink()

    def payload(self, path: str) -> None:
        """Write a pickle that makes a file CANARY if it is unpickled."""
        (self.folder / path).write_bytes(pickle.dumps(_Payload()))

    def rename(self, path: str, target: str) -> None:
        (self.folder / path).rename(self.folder / target)

    def entry(self, path: str, values: dict[str, Any]) -> None:
        """Set keys of the first entry of an adapter's plan."""
        tree = json.loads((self.folder / path).read_text())
        tree["plan"]["entries"][0] |= values
        self._write_json(path, tree)

    def deep_update(self, path: str, keys: list[str], value: Any) -> None:
        tree = json.loads((self.folder / path).read_text())
        node = tree
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value
        self._write_json(path, tree)

    def seal(self, checkpoint: str) -> None:
        """Make the manifest fit the files, as an attacker would."""
        folder = self.folder / checkpoint
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, entry in manifest["files"].items():
            data = (folder / name).read_bytes()
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(with_checksum(manifest)))

    def gzip(self, source: str, path: str) -> None:
        (self.folder / path).write_bytes(gzip.compress((self.folder / source).read_bytes()))

    def parquet(self, source: str, path: str) -> None:
        rows = [json.loads(line) for line in (self.folder / source).read_text().splitlines()]
        pyarrow.parquet.write_table(pyarrow.table({"row": [json.dumps(row) for row in rows]}), self.folder / path)

    def picture(self, path: str, form: str, mode: str = "RGB") -> None:
        """Write a picture in a format of Pillow, whatever its name ends in."""
        picture = Image.new("RGB", (32, 24), (200, 40, 90)) if mode == "RGB" else Image.new(mode, (32, 24))
        picture.save(self.folder / path, form)

    def twelve_bits(self, path: str) -> None:
        """Write a TIFF with three samples of 12 bits per pixel, packed, as scanners do."""
        (self.folder / path).write_bytes(tiff.of(12, 3, b"\x12" * (8 * 6 * 3 * 12 // 8)))

    def twelve_in_sixteen(self, path: str) -> None:
        """Write a TIFF with three samples of 16 bits per pixel, none above 4095, as cameras and microscopes do."""
        (self.folder / path).write_bytes(tiff.of(16, 3, b"\xff\x0f" * (8 * 6 * 3)))

    def frames(self, path: str, count: int) -> None:
        first, *rest = (Image.new("P", (3, 3), number % 7) for number in range(count))
        first.save(self.folder / path, save_all=True, append_images=rest)
