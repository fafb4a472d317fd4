"""Videos in records, and how their frames are chosen and read."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.records.reader import read_records, write_records
from mmdora.records.record import check_record
from mmdora.records.row import row_of, videos_of
from mmdora.records.turns import split_turns
from mmdora.records.videos import VideoRef, digest, open_video, sampling


@pytest.fixture
def clip(tmp_path: Path) -> VideoRef:
    """Twelve frames, the number of which is their colour, beside a file that is no frame."""
    (tmp_path / "clip").mkdir()
    for number in range(12):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / "clip" / f"f{number}.png")
    (tmp_path / "clip" / "notes.txt").write_text("no frame")
    return VideoRef("clip", tmp_path, 4, 3.0)


def record(**part: Any) -> dict[str, Any]:
    content = [{"type": "video", **part}, {"type": "text", "text": "what?"}]
    answer = [{"type": "text", "text": "this"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"id": "a", "messages": messages, "images": [], "videos": ["clip"]}


def test_frames_are_evenly_spaced_from_the_first_to_the_last(clip: VideoRef) -> None:
    video = open_video(clip)
    assert video.pixels.shape == (4, 10, 20, 3) and video.pixels.dtype == np.uint8
    assert video.pixels[:, 0, 0, 0].tolist() == [0, 4, 7, 11] == list(video.sampling.indices)
    assert video.sampling == sampling(clip)
    told = video.sampling.metadata()
    assert (told["total_num_frames"], told["fps"], told["duration"]) == (12, 3.0, 4.0)


def test_a_short_video_shows_frames_twice(clip: VideoRef) -> None:
    assert sampling(VideoRef("clip", clip.root, 16)).indices == (0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10, 10, 11)
    assert open_video(VideoRef("clip", clip.root, 16)).pixels.shape[0] == 16


def test_a_frame_of_another_size_is_named(clip: VideoRef) -> None:
    Image.new("RGB", (21, 10)).save(clip.path / "f4.png")
    with pytest.raises(MmdoraError, match=r"f4\.png is 21x10, and the first frame 20x10"):
        open_video(clip)


@pytest.mark.parametrize("name", ["../clip", "/etc", "gone", "https://x.org/a.mp4", "f0.png"])
def test_videos_below_the_root_only(clip: VideoRef, name: str) -> None:
    with pytest.raises(MmdoraError, match=r"video '.*'"):
        sampling(VideoRef(name, clip.path / "below" if name == "../clip" else clip.root))


def test_a_link_out_of_the_root_is_not_followed(clip: VideoRef, tmp_path: Path) -> None:
    (tmp_path / "root" / "b").mkdir(parents=True)
    (tmp_path / "root" / "b" / "0.png").symlink_to(clip.path / "f0.png")
    with pytest.raises(MmdoraError, match="leads outside"):
        open_video(VideoRef("b", tmp_path / "root"))


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MmdoraError, match="a folder without frames"):
        sampling(VideoRef(".", tmp_path))


def test_a_file_without_a_decoder_says_what_to_install(tmp_path: Path) -> None:
    if importlib.util.find_spec("torchcodec"):
        pytest.skip("torchcodec is installed")
    (tmp_path / "a.mp4").write_bytes(b"\0")
    with pytest.raises(MmdoraError, match=r"a.mp4: a file needs a decoder: pip install 'mmdora\[video\]'"):
        sampling(VideoRef("a.mp4", tmp_path))


def test_a_file_gives_the_frames_that_were_written(tmp_path: Path) -> None:
    pytest.importorskip("torchcodec", reason="torchcodec, of the extra `video`, is not installed")
    import torch
    from torchcodec.encoders import VideoEncoder  # pyright: ignore[reportMissingImports]

    shades = torch.arange(12, dtype=torch.uint8).mul(20).view(12, 1, 1, 1).expand(12, 3, 32, 48).contiguous()
    VideoEncoder(shades, frame_rate=6).to_file(str(tmp_path / "a.mp4"))
    video = open_video(VideoRef("a.mp4", tmp_path, 4))
    assert video.pixels.shape == (4, 32, 48, 3) and video.sampling.fps == pytest.approx(6)
    assert np.abs(video.pixels.mean((1, 2, 3)) - 20 * np.array([0, 4, 7, 11])).max() < 6
    assert sampling(VideoRef("a.mp4", tmp_path, 4, 25.0)).fps == 25.0
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(MmdoraError, match=r"b\.mp4: cannot be decoded"):
        open_video(VideoRef("b.mp4", tmp_path))


def test_the_digest_follows_the_content(clip: VideoRef) -> None:
    before = digest(clip)
    Image.new("RGB", (20, 10), (99, 0, 0)).save(clip.path / "f3.png")
    assert digest(clip) != before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"videos": []}, "1 video parts for 0 videos"),
        ({"videos": "clip"}, "'videos' must be a list of paths"),
        ({"messages": record(frames=0)["messages"]}, "'frames' is 0"),
        ({"messages": record(frames=True)["messages"]}, "'frames' is True"),
        ({"messages": record(fps=0)["messages"]}, "'fps' is 0"),
        ({"messages": record(fps="2")["messages"]}, "'fps' is '2'"),
        ({"video": "clip"}, "the key 'video' is not read; a video stands under 'videos'"),
        ({"audio": "a.wav"}, "this layout holds pictures and videos only"),
    ],
)
def test_bad_records(change: dict[str, Any], said: str) -> None:
    with pytest.raises(MmdoraError, match=said):
        check_record(record() | change, "here")


def test_an_answer_cannot_hold_a_video() -> None:
    bad = record()
    bad["messages"][1]["content"].insert(0, {"type": "video"})
    with pytest.raises(MmdoraError, match="cannot hold a video"):
        check_record(bad, "here")


def test_a_file_of_records_gives_videos(clip: VideoRef) -> None:
    write_records(clip.root / "r.jsonl", [record(frames=5, fps=2), record() | {"id": "b"}])
    records = read_records(clip.root / "r.jsonl")
    assert [videos_of(row) for row in records] == [[VideoRef("clip", clip.root, 5, 2)], [VideoRef("clip", clip.root)]]
    assert records.images.tolist() == [1, 1] and records.frames.tolist() == [5, 8]


def test_pieces_of_a_conversation_keep_its_video(clip: VideoRef) -> None:
    long = record()
    long["messages"] += [{**message} for message in long["messages"]]
    long["messages"][2] = {"role": "user", "content": [{"type": "text", "text": "and?"}]}
    pieces = split_turns(row_of(check_record(long, "here"), clip.root), 1)
    assert [part["type"] for part in pieces[1]["messages"][0]["content"]] == ["video", "text"]
    assert all(len(videos_of(piece)) == 1 for piece in pieces)
