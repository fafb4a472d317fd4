"""Drawn scenes: reproducible, true to the picture, and not easy-VQA's questions."""

import hashlib
import json
from pathlib import Path
from random import Random

import easy_vqa
import numpy as np
import pytest
from kept_records import records_in
from PIL import Image

from mmdora.data_prep import scenes
from mmdora.data_prep.scenes import tasks


def easy_vqa_questions() -> set[str]:
    data = Path(easy_vqa.__file__).parent / "data"
    return {row[0] for split in ("train", "test") for row in json.loads((data / split / "questions.json").read_text())}


def template(question: str) -> str:
    words = {word: "SHAPE" for word in (*scenes.SHAPES, "shape", "object", "thing")}
    words |= {word: "COLOUR" for word in scenes.COLOURS} | {"an": "a"}
    return " ".join(words.get(word, word) for word in question.rstrip("?.").split())


def test_no_question_template_is_easy_vqas():
    ours = set()
    for number in range(3000):
        random = Random(number)
        ours |= {template(q) for q, _ in scenes.conversation(random, scenes.scene(random)[0])}
    for kind in ("questions", "places", "names", "pair-questions", "clip-features"):  # what tiny-vlbart is made of
        ours |= {template(asked.text) for i in range(300) for asked in tasks.draw_of(kind, "train", 0, i).asked}
    theirs = {template(q) for q in easy_vqa_questions()}
    assert len(ours) > 50 and len(theirs) > 10
    assert not ours & theirs


def test_scenes_follow_from_seed_and_number(tmp_path: Path):
    first = scenes.prepare(tmp_path / "a", rows=6, seed=3, held_out=4)
    scenes.prepare(tmp_path / "b", rows=6, seed=3, held_out=4)
    assert first == {"train": 6, "test": 4}
    for file in ("train.jsonl", "test.jsonl", "images/train/2.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    scenes.prepare(tmp_path / "c", rows=6, seed=4, held_out=4)
    assert (tmp_path / "a/train.jsonl").read_bytes() != (tmp_path / "c/train.jsonl").read_bytes()
    records = records_in(tmp_path / "a" / "test.jsonl")
    assert all(len(record["messages"]) == 2 for record in records)


@pytest.mark.parametrize(
    ("presence", "seed", "digest"),
    [
        (0.0, 0, "30e420a01bcae0d62a048b4da3c3855b555be88f7d9332a9dc1ab6091e64e30e"),
        (0.6, 5, "d845fcfe5fe6eeb40b14758b2a4643e991f5210d26b893efd93ad05b04f9c36f"),
    ],
)
def test_the_draws_are_those_that_the_bundled_base_was_trained_on(tmp_path: Path, presence, seed, digest):
    """Texts and pixels as they were when tiny-llava was made; another Pillow may draw other pixels."""
    scenes.prepare(tmp_path, rows=40, held_out=20, presence=presence, seed=seed, workers=1)
    found = hashlib.sha256()
    for name in ("train.jsonl", "test.jsonl"):
        found.update((tmp_path / name).read_bytes())
    for path in sorted(tmp_path.glob("images/*/*.png")):
        found.update(Image.open(path).tobytes())
    assert found.hexdigest() == digest


def test_every_shape_is_where_it_is_said_to_be():
    for number in range(200):
        things, picture = scenes.scene(Random(number))
        pixels = np.asarray(picture).astype(int)
        for thing in things:
            if thing.shape not in ("rectangle", "circle", "cross"):
                continue
            centre = pixels[int(thing.y), int(thing.x)]
            near = [np.abs(centre - rgb).sum() for rgb in scenes.COLOURS[thing.colour]]
            assert min(near) < 30, (number, thing)


def test_answers_are_true():
    a = scenes.Thing("circle", "red", 10, 10, 8, 8)
    b = scenes.Thing("triangle", "blue", 50, 50, 30, 30)
    assert scenes.caption([b, a]) == "a small red circle at the top left and a large blue triangle at the bottom right"
    seen = {}
    for number in range(4000):
        seen |= dict(scenes.conversation(Random(number), [a, b]))
    truth = {
        "is the red circle left of the blue triangle?": "yes",
        "is the blue triangle above the red circle?": "no",
        "how many objects are there?": "two",
        "how big is the red circle?": "small",
        "where is the blue triangle?": "at the bottom right",
        "the red object is which shape?": "circle",
        "name the color of the triangle.": "blue",
        "can you see a red circle?": "yes",
        "is the picture without a red circle?": "no",
        "true or false: there are no red circles.": "false",
    }
    assert {question: seen[question] for question in truth} == truth
