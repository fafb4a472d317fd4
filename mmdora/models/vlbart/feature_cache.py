"""Keeps the features that a frozen tower gives for each image on disk, so that it runs once per image, not per step.

It is only for VL-BART, whose forward accepts features instead of pixels. Other models are refused, because they run
their tower inside of `get_image_features`, together with a projector that trains.

Features are computed in the dtype of the tower's weights, without autocast. They are computed anew if the image's
content, the tower's weights or config, the settings of the image processor, or the versions of the libraries that run
both have changed.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mmdora.errors import MmdoraError
from mmdora.families import Family
from mmdora.models.open_clip.tower import OpenClipVisionModel, token_shape
from mmdora.models.open_clip.weights import digest
from mmdora.models.vlbart.mapped_rows import MappedRows
from mmdora.records.images import FileRef, decode, image_bytes
from mmdora.records.row import Row

FORMAT = 1
"""Version of the kept features. Raise it when they are computed differently, so that old ones are not used."""
ABOUT = "about.json"


class FeatureCache:
    """A cache of image features, keyed by the content of the image. Loader processes get a copy without the tower.

    Args:
        folder: folder of all caches; this cache is a folder in it, named by a hash of all that its features depend on.
        tower: the frozen tower.
        image_processor: the image processor of the model's processor.

    Raises:
        MmdoraError: if the folder cannot be written.
    """

    def __init__(self, folder: Path, tower: OpenClipVisionModel, image_processor: Any):
        self.tower, self.image_processor = tower, image_processor
        about = _about(tower, image_processor)
        name = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:32]
        self.rows = MappedRows(folder / name, token_shape(tower.config), tower.dtype, setting="data.feature_cache")
        if not (folder / name / ABOUT).exists():  # This file only tells people what the folder is.
            (folder / name / ABOUT).write_text(json.dumps(about, indent=1, default=str) + "\n", encoding="utf-8")

    @classmethod
    def of(cls, model: Any, family: Family, folder: Path) -> FeatureCache:
        """The cache of a model's tower.

        Raises:
            MmdoraError: if the model accepts no features, has no tower, or trains its tower.
        """
        tower = tower_of(model, family)
        if name := next((name for name, parameter in tower.named_parameters() if parameter.requires_grad), None):
            raise MmdoraError(
                f"data.feature_cache: the tower trains ({name}), so its features change; set "
                "adapt.vision.method to none, or leave data.feature_cache out"
            )
        return cls(folder, tower, family.processor.image_processor)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tower": None}

    def to(self, device: torch.device) -> None:
        """Put the tower on the device on which it will run."""
        assert self.tower is not None
        nn.Module.to(self.tower, device)

    def features(self, image: FileRef) -> Tensor:
        """[T, F]: the features of an image, in the tower's dtype, on the CPU.

        Raises:
            MmdoraError: if `fill` has not seen the image as it is now, or if its features were damaged since.
        """
        data, where = image_bytes(image)
        tokens = self.rows.get(_key(data))
        if tokens is None:
            raise MmdoraError(
                f"image {where}: its features in {self.rows.folder} are missing or damaged since the run began; start "
                "it again, and they are computed anew"
            )
        return tokens

    @torch.no_grad()
    def fill(self, rows: Sequence[Row], *, batch_size: int = 16, workers: int = 0) -> int:
        """Compute the features of all images of some rows that are missing or damaged.

        Several processes may do this at once.

        Args:
            rows: the rows whose images are needed.
            batch_size: number of rows that are read together, and of images that the tower is given together.
            workers: number of loader processes that read and preprocess images.

        Returns:
            The number of images that went through the tower.

        Raises:
            MmdoraError: if an image cannot be read (the message names its record), or if the disk is full.
        """
        assert self.tower is not None
        training, damaged, count = self.tower.training, 0, 0
        device = next(self.tower.parameters()).device
        loader = DataLoader(
            _Missing(self, rows),
            batch_size=batch_size,
            collate_fn=list,
            num_workers=workers,
            generator=torch.Generator(),  # The loader draws a seed, which must not change the run's random numbers.
        )
        self.tower.eval()
        try:
            with (
                tqdm(total=len(rows), desc="image features", unit="row", unit_scale=True, delay=1) as bar,
                torch.autocast(device.type, enabled=False),
            ):
                for answers in loader:
                    wanted: dict[bytes, Tensor] = {}
                    for images in answers:
                        if isinstance(images, MmdoraError):
                            raise images
                        wanted |= images
                    missing = [key for key in wanted if self.rows.get(key) is None]
                    damaged += sum(key in self.rows for key in missing)
                    for start in range(0, len(missing), batch_size):
                        keys = missing[start : start + batch_size]
                        pixels = torch.stack([wanted[key] for key in keys]).to(device, self.tower.dtype)
                        tokens = self.tower(pixels).last_hidden_state
                        self.rows.put(dict(zip(keys, tokens, strict=True)))
                    count += len(missing)
                    bar.update(len(answers))
        finally:
            self.tower.train(training)
        if damaged:
            warnings.warn(f"{self.rows.folder}: {damaged} damaged features were computed anew", stacklevel=2)
        return count


class _Missing(Dataset[Any]):
    """Gives, for each row, key and pixels of its images whose features are missing or damaged.

    An error is returned, because a DataLoader would wrap it in a traceback.
    """

    def __init__(self, cache: FeatureCache, rows: Sequence[Row]):
        self.cache, self.rows = cache, rows
        self.seen: set[FileRef] = set()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[bytes, Tensor] | MmdoraError:
        row, missing = self.rows[index], {}
        try:
            for image in row["images"]:
                if image in self.seen:  # Many questions may be about the same picture.
                    continue
                data, where = image_bytes(image)
                key = _key(data)
                if self.cache.rows.get(key) is None:
                    made = self.cache.image_processor([decode(data, where)], return_tensors="pt")
                    missing[key] = made["pixel_values"][0]
                self.seen.add(image)
        except MmdoraError as error:
            return MmdoraError(f"record {row['id']}: {error}")
        return missing


def tower_of(model: Any, family: Family) -> OpenClipVisionModel:
    """The tower whose features a model, or a skeleton of it, accepts instead of pixels.

    Raises:
        MmdoraError: if the model accepts none.
    """
    tower = family.feature_tower(model)
    if not isinstance(tower, OpenClipVisionModel):
        raise MmdoraError(
            f"data.feature_cache: {type(model).__name__} takes no features in place of pixels, only VL-BART does; "
            "leave it out"
        )
    if tower.visual is None:
        raise MmdoraError(
            "data.feature_cache: this model has no image tower, its features are in the records; leave it out"
        )
    return tower


def _key(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _about(tower: OpenClipVisionModel, image_processor: Any) -> dict[str, Any]:
    """Everything that features depend on, besides the image."""
    config = tower.config
    return {
        "format": FORMAT,
        "weights": digest(tower.visual.state_dict()),
        "tower": {name: getattr(config, name) for name in ("embed_dim", "vision_cfg", "quick_gelu", "feature", "grid")},
        "images": {"class": type(image_processor).__name__, **image_processor.to_dict()},
        "dtype": str(tower.dtype),
        "open_clip": open_clip.__version__,
        "transformers": transformers.__version__,
    }
