"""Videos: a family's batch is the stock processor's on the same frames, and counted exactly; the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import checkpoints
from PIL import Image

from mmdora.batches.fit import fit
from mmdora.errors import MmdoraError
from mmdora.evaluate import models
from mmdora.families import IGNORE, Prompt, family_of
from mmdora.records.images import open_image
from mmdora.records.reader import read_records, write_records
from mmdora.records.record import check_record
from mmdora.records.row import Row, row_of, videos_of
from mmdora.records.turns import prompt_messages
from mmdora.records.videos import open_video

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl", "llava_next_video", "llava_onevision")
ALIKE = ("llava_next_video", "llava_onevision")
"""Families whose models take videos of equally many frames only."""
FPS = 2.5
CLIPS = {"a": (5, (40, 30)), "b": (12, (64, 48))}
"""Folder of frames -> their number and size (width, height)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for number, (name, (frames, size)) in enumerate(CLIPS.items()):
        (root / name).mkdir()
        for frame in range(frames):
            picture(root / name / f"frame{frame}.png", size, 100 * number + frame)
    picture(root / "p.png", (70, 50), 999)
    return root


def picture(path: Path, size: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def record(name: str, videos: list[str], images: list[str] | None = None, **part: Any) -> dict[str, Any]:
    images = images or []
    parts: list[dict[str, Any]] = [{"type": "image"} for _ in images]
    parts += [{"type": "video", "frames": 4, "fps": FPS, **part} for _ in videos]
    said = [{"type": "text", "text": "a cat, and so on"}]
    content = [*parts, {"type": "text", "text": "what is it?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": said}]
    return {"id": name, "messages": messages, "images": images, "videos": videos}


def row(folder: Path, *args: Any, **part: Any) -> Row:
    return row_of(check_record(record(*args, **part), "row"), folder)


def processor_of(name: str) -> Any:
    for package in checkpoints.RECIPES[name].needs:
        pytest.importorskip(package)
    return checkpoints.RECIPES[name].make_processor()


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_and_counts_are_the_stock_processors(name: str, folder: Path) -> None:
    processor = processor_of(name)
    family = family_of(processor)
    rows = [row(folder, "a", ["a"]), row(folder, "b", ["b"]), row(folder, "p", [], ["p.png"]), row(folder, "t", [])]
    for each in rows:
        batch = family.batch([each])
        stock = stock_batch(processor, family.render(each["messages"]), each, folder)
        assert set(batch) == set(stock) | {"labels"}
        for key, value in stock.items():
            assert torch.equal(batch[key], torch.as_tensor(value)), key
    batch = family.batch(rows)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert family.count_tokens(rows).tolist() == lengths
    assert all(family.count_image_tokens(rows)[:3] > 0) and family.count_image_tokens(rows)[3] == 0
    for number, each in enumerate(rows):
        alone = family.batch([each])
        assert torch.equal(batch["input_ids"][number, : lengths[number]], alone["input_ids"][0])
        labels = batch["labels"][number]
        learned = processor.tokenizer.decode(labels[labels != IGNORE]).strip()
        assert learned.startswith("a cat, and so on") and len(learned) < 40
    left = family.encode_prompts([prompt(each) for each in rows])
    asked = family.batch([rows[0]])
    told = int((asked["labels"][0] == IGNORE).sum()) - (0 if asked["labels"][0, -1] != IGNORE else 1)
    assert left["input_ids"][0].tolist()[-told:] == asked["input_ids"][0, :told].tolist()


def stock_batch(processor: Any, text: str, each: Row, folder: Path) -> dict[str, Any]:
    """What the stock processor gives for a row, from frames that are opened and chosen here."""
    images = [[Image.open(folder / "p.png")]] if each["images"] else None
    clips: dict[str, Any] = {}
    if videos_of(each):
        name = videos_of(each)[0].name
        count = CLIPS[name][0]
        chosen = [round(place * (count - 1) / 3) for place in range(4)]
        frames = [np.array(Image.open(folder / name / f"frame{number}.png")) for number in chosen]
        told = {"total_num_frames": count, "fps": FPS, "duration": count / FPS, "frames_indices": chosen}
        clips = {"videos": [np.stack(frames)], "videos_kwargs": {"video_metadata": [told], "do_sample_frames": False}}
    start = processor.tokenizer.bos_token
    special = not (start and text.startswith(start))
    return processor(text=[text], images=images, return_tensors="pt", add_special_tokens=special, **clips)


def prompt(each: Row) -> Prompt:
    images, videos = [open_image(image) for image in each["images"]], [open_video(video) for video in videos_of(each)]
    return Prompt(prompt_messages(each), images, videos=videos)


@pytest.mark.parametrize("name", ["smolvlm", "internvl", "llava_onevision"])
def test_rows_of_a_padded_batch_are_computed_as_alone(name: str, folder: Path, tmp_path: Path) -> None:
    processor_of(name)
    checkpoints.make(name, tmp_path)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    family = family_of(AutoProcessor.from_pretrained(tmp_path))
    rows = [row(folder, "t", []), row(folder, "a", ["a"]), row(folder, "p", [], ["p.png"]), row(folder, "b", ["b"])]
    if name not in ALIKE:
        rows[1] = row(folder, "a", ["a"], frames=3)
    with torch.inference_mode():
        together = model(**family.batch(rows)).logits
        for number, each in enumerate(rows):
            alone = model(**family.batch([each])).logits[0]
            assert torch.allclose(together[number, : len(alone)], alone, atol=1e-4)


@pytest.mark.parametrize("name", ["llava_onevision", "internvl"])
def test_different_numbers_of_frames_are_refused_where_the_model_cannot(
    name: str, folder: Path, tmp_path: Path
) -> None:
    family = family_of(processor_of(name))
    write_records(tmp_path / "r.jsonl", [record("a", ["a"]), record("b", ["b"], frames=3)])
    records = read_records(tmp_path / "r.jsonl", folder)
    if name in ALIKE:
        with pytest.raises(MmdoraError, match="record b shows another number"):
            fit(records, family, None, "error")
        with pytest.raises(MmdoraError, match="equally many frames for this model, and have 3 and 4"):
            family.batch(list(records))
    else:
        assert (
            fit(records, family, 500, "error").lengths.tolist()
            == family.batch(list(records))["attention_mask"].sum(1).tolist()
        )


def test_a_family_without_videos_says_so(folder: Path) -> None:
    family = family_of(processor_of("llava"))
    with pytest.raises(MmdoraError, match="record a: holds a video, and LlavaProcessor takes none"):
        family.check_learnable([row(folder, "a", ["a"])])
    with pytest.raises(MmdoraError, match="holds a video, and LlavaProcessor takes none"):
        family.encode_prompts([prompt(row(folder, "a", ["a"]))])


def test_times_that_nothing_tells_are_refused(folder: Path) -> None:
    untold = row(folder, "a", ["a"])
    untold["videos"] = [type(video)(video.name, video.root, 4) for video in videos_of(untold)]
    for call in ("count_tokens", "batch"):
        with pytest.raises(MmdoraError, match="at what time each frame was, and a folder does not say it"):
            getattr(family_of(processor_of("qwen3_vl")), call)([untold])
    assert family_of(processor_of("qwen2_vl")).count_tokens([untold]) > 0


def test_pictures_and_a_video_in_one_row_of_smolvlm_are_refused(folder: Path) -> None:
    family = family_of(processor_of("smolvlm"))
    with pytest.raises(MmdoraError, match="record a: holds pictures and a video"):
        family.check_learnable([row(folder, "a", ["a"], ["p.png"])])


def test_a_text_with_the_mark_of_a_video_is_refused(folder: Path) -> None:
    marked = row(folder, "a", ["a"])
    marked["messages"][0]["content"][-1] = {"type": "text", "text": "what is <video>?"}
    with pytest.raises(MmdoraError, match="record a: the text 'what is <video>\\?' holds the image placeholder"):
        family_of(processor_of("llava_onevision")).check_learnable([marked])


def test_an_evaluation_says_so_before_a_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path / "r.jsonl", [record("t", []), record("a", ["a"])])
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    for data in (tmp_path / "r.jsonl", [record("a", ["a"])]):
        with pytest.raises(MmdoraError, match="model: record a: holds a video, and LlavaProcessor takes none"):
            models.evaluate("tiny-llava", data, images=folder)
