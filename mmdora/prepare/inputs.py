"""The arguments of `mmdora prep NAME`; they are the same for all datasets of a kind.

The docstrings below are the help texts of the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Flag = Parameter(negative=())


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Official files of text.

    Parameters
    ----------
    files
        The official files, as their owners publish them.
    split
        Name of the split to write; default: the one in the name of the file (train, val, dev, test).
    skip_bad
        Go on without rows that cannot be used; they are listed in bad_rows.jsonl.
    workers
        Processes; default: one per core.
    """

    files: Annotated[list[Path], Parameter(name="--in", consume_multiple=True)]
    split: str | None = None
    skip_bad: Annotated[bool, Flag] = False
    workers: int | None = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ImageInputs(Inputs):
    """Official files with images.

    Parameters
    ----------
    images
        Root of the image paths; nothing outside it is read. Not needed where the files hold the images.
    pack
        Write Parquet files with the images inside, instead of JSONL with paths.
    """

    images: Path | None = None
    pack: Annotated[bool, Flag] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OwnInputs(ImageInputs):
    """Files in a layout that people use for pictures of their own.

    Parameters
    ----------
    files
        Your files, or the official ones, as their owners publish them.
    held_out
        Share of the pictures, such as 0.2, whose rows go to test.jsonl, and all others to train.jsonl; no picture is
        in both.
    seed
        Another seed makes --held-out take other pictures.
    """

    held_out: float | None = None
    seed: int = 0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class VideoInputs(Inputs):
    """Official files about videos.

    Parameters
    ----------
    features
        Root of the feature files, NAME.npz or NAME.npy for each video; nothing outside it is read.
    subtitles
        Subtitles as JSONL, a video per line.
    """

    features: Path
    subtitles: Path | None = None
