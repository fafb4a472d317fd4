"""Opens videos: a few evenly spaced frames of a folder of pictures, or of a file that `torchcodec` decodes.

A video is opened when its row's turn comes, and nothing of it is kept.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmdora.errors import MmdoraError
from mmdora.files import sha256
from mmdora.records.images import FileRef, image_size, locate, open_image

FRAMES = 8
"""The frames of a video for which its part gives no number: what LLaVA-NeXT-Video was mostly asked with."""
STILLS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
"""Endings of the names of frames in a folder; other files in it are not looked at."""
MAX_PIXELS = 1_000_000_000
"""The most pixels of all frames of a video together: 3 GB in RGB."""


@dataclass(frozen=True)
class VideoRef:
    """A video that a record names, and how many of its frames are shown.

    Attributes:
        name: path of a file, or of a folder of frames, below `root`.
        frames: number of frames that are shown.
        fps: frames per second of the whole video, where the record says it.
    """

    name: str
    root: Path
    frames: int = FRAMES
    fps: float | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> Path:
        """The path of the file or folder below the root.

        Raises:
            MmdoraError: in the cases of `images.locate`.
        """
        return locate(self.name, self.root, what="video", folder=True)


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are shown.

    Attributes:
        total: number of frames of the whole video.
        height, width: of a frame in pixels.
        fps: frames per second of the whole video; None if nothing says it.
        indices: the frames that are shown, counted from 0. A video with fewer frames shows some of them twice.
    """

    total: int
    height: int
    width: int
    fps: float | None
    indices: tuple[int, ...]

    def metadata(self) -> dict[str, Any]:
        """The values of `transformers.video_utils.VideoMetadata`."""
        return {
            "total_num_frames": self.total,
            "fps": self.fps,
            "width": self.width,
            "height": self.height,
            "duration": None if self.fps is None else self.total / self.fps,
            "frames_indices": list(self.indices),
        }


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a video: `pixels` [frames, height, width, 3] uint8 in RGB."""

    pixels: np.ndarray
    sampling: Sampling


def open_video(video: VideoRef) -> Video:
    """Decode the frames of a video that are shown.

    Raises:
        MmdoraError: in the cases of `sampling`, or if a frame cannot be read or has another size than the first.
    """
    source = _source(video)
    chosen = source.sampling
    pixels = source.pixels(chosen.indices)
    if pixels.shape[1:3] != (chosen.height, chosen.width):
        raise MmdoraError(f"video {source.where}: its frames change their size; save them in one")
    return Video(pixels, chosen)


def sampling(video: VideoRef) -> Sampling:
    """Which frames of a video `open_video` gives. Of a folder only the header of one frame is read.

    Raises:
        MmdoraError: there is no such video below the root, it holds no frames, cannot be read, or its frames have more
            than `MAX_PIXELS` together; or `torchcodec` is missing for a file.
    """
    return _source(video).sampling


def digest(video: VideoRef) -> str:
    """SHA-256 of a video's file, or of the names and contents of its frames."""
    path = video.path
    if path.is_file():
        return sha256(path)
    whole = hashlib.sha256()
    for name in _stills(path):
        whole.update(f"{name}\0{sha256(path / name)}".encode())
    return whole.hexdigest()


class _Folder:
    """A folder of frames; their order is that of the numbers in their names."""

    def __init__(self, video: VideoRef, path: Path):
        self.video, self.where = video, str(path)
        self.frames = [FileRef(f"{video.name}/{name}", video.root) for name in _stills(path)]
        if not self.frames:
            raise MmdoraError(f"video {path}: a folder without frames ({', '.join(STILLS[:3])}, …)")

    @cached_property
    def sampling(self) -> Sampling:
        height, width = image_size(self.frames[0])
        return _sampled(self.video, self.where, len(self.frames), height, width, self.video.fps)

    def pixels(self, indices: tuple[int, ...]) -> np.ndarray:
        opened = {index: np.asarray(open_image(self.frames[index])) for index in sorted(set(indices))}
        for index, frame in opened.items():
            if frame.shape[:2] != (self.sampling.height, self.sampling.width):
                raise MmdoraError(
                    f"video {self.where}: {Path(self.frames[index].name).name} is {frame.shape[1]}x{frame.shape[0]}, "
                    f"and the first frame {self.sampling.width}x{self.sampling.height}; save all in one size"
                )
        return np.stack([opened[index] for index in indices])


class _File:
    """A video's file, decoded by `torchcodec`."""

    def __init__(self, video: VideoRef, path: Path):
        self.video, self.where = video, str(path)
        try:
            from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MmdoraError(
                f"video {path}: a file needs a decoder: pip install 'mmdora[video]'; or give a folder of its frames"
            ) from None
        except (OSError, RuntimeError) as error:  # torchcodec is there, and FFmpeg's libraries are not.
            reason = " ".join(str(error).split())[:160]
            raise MmdoraError(f"video {path}: torchcodec does not load ({reason}); install FFmpeg") from None
        try:
            self.decoder: Any = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
        except (RuntimeError, ValueError) as error:
            raise self._unreadable(error) from None

    @cached_property
    def sampling(self) -> Sampling:
        try:
            height, width = self.decoder[0].shape[:2]  # The header of a turned video has the sides before turning.
            total, fps = len(self.decoder), self.decoder.metadata.average_fps
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._unreadable(error) from None
        return _sampled(self.video, self.where, total, height, width, self.video.fps or fps)

    def pixels(self, indices: tuple[int, ...]) -> np.ndarray:
        try:
            return self.decoder.get_frames_at(indices=list(indices)).data.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> MmdoraError:
        return MmdoraError(
            f"video {self.where}: cannot be decoded ({' '.join(str(error).split())[:120]}); give it as MP4 (H.264), or "
            "as a folder of its frames"
        )


def _source(video: VideoRef) -> _Folder | _File:
    path = video.path
    return _Folder(video, path) if path.is_dir() else _File(video, path)


def _stills(path: Path) -> list[str]:
    """Names of the frames in a folder, `frame9.png` before `frame10.png`."""
    names = [file.name for file in path.iterdir() if file.suffix.lower() in STILLS and not file.name.startswith(".")]
    return sorted(names, key=lambda name: ([int(number) for number in re.findall(r"\d{1,18}", name)], name))


def _sampled(video: VideoRef, where: str, total: int, height: int, width: int, fps: float | None) -> Sampling:
    if video.frames * height * width > MAX_PIXELS:
        raise MmdoraError(
            f"video {where}: {video.frames} frames of {width}x{height} are over {MAX_PIXELS // 10**6:,} megapixels; "
            "ask for fewer frames in its part, or scale it down"
        )
    indices = np.linspace(0, total - 1, video.frames).round().astype(int)
    return Sampling(total, height, width, fps, tuple(indices.tolist()))
