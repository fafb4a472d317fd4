"""The drawn tasks: answers true to what is drawn, splits apart by what they show, and full marks by their scorers."""

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from mmdora.data_prep import nlvr2, pope, scenes
from mmdora.data_prep.scenes import clips, language, one_picture, pair_questions, pairs, tasks, words
from mmdora.data_prep.scenes.drawing import Draw, Thing, in_words
from mmdora.errors import MmdoraError
from mmdora.prepare.features import measure

KINDS = get_args(scenes.Kind)


def draws(kind: str, amount: int, split: str = "train", seed: int = 0) -> list[Draw]:
    return [tasks.draw_of(kind, split, seed, number) for number in range(amount)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    assert set(KINDS) == set(tasks.KINDS)
    for kind in KINDS:
        scenes.prepare(folder / kind, kind=kind, rows=6, held_out=6, workers=1)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_split_is_fixed_and_unlike_what_is_trained_on(kind: Any, prepared: Path, tmp_path: Path):
    scenes.prepare(tmp_path / "other", kind=kind, rows=3, held_out=6, seed=5, workers=1)
    ours, other = (
        [(folder / f"{split}.jsonl").read_bytes() for split in ("train", "test")]
        for folder in (prepared / kind, tmp_path / "other")
    )
    assert ours[1] == other[1] and other[0] not in ours[0]
    train = {draw.about for seed in (0, 1) for draw in draws(kind, 25, seed=seed)}
    test = {draw.about for draw in draws(kind, 10, "test", seed=3)}
    assert test == {draw.about for draw in draws(kind, 10, "test", seed=4)}
    assert len(test) > 8 and not train & test
    assert json.loads((prepared / kind / "dataset_card.json").read_text())["name"] == f"scenes-{kind}"


@pytest.mark.parametrize(
    ("kind", "task"),
    [("count", "exact"), ("relation", "exact"), ("pope", "pope"), ("nlvr2", "nlvr2"), ("ocr", "exact"),
     ("clips", "exact"), ("clip-features", "exact"), ("questions", "exact"), ("names", "exact"),
     ("places", "exact"), ("pair-questions", "exact")],
)  # fmt: skip
def test_a_scorer_finds_what_it_needs(kind: str, task: str, prepared: Path, records_of, full_marks):
    for split in ("train", "test"):
        records = records_of(prepared / kind / f"{split}.jsonl")
        assert full_marks(task, records)
        for record in records:
            for name in record["images"]:
                assert Image.open(prepared / kind / name).size == (64, 64)


A, B = Thing("circle", "red", 10, 10, 8, 8), Thing("triangle", "blue", 50, 52, 30, 30)


def test_captions_are_true_and_differ(prepared: Path, records_of):
    assert in_words([B, A]) == "large blue triangle at the bottom right; small red circle at the top left"
    for draw in draws("caption", 30):
        (asked,) = draw.asked
        assert asked.answer == asked.meta["references"][0] and len(set(asked.meta["references"])) == 4
        names = [" ".join(part.split(" at ")[0].split()[1:]) for part in draw.about.split("; ")]
        for reference in asked.meta["references"]:
            assert all(name in reference for name in names)
    for record in records_of(prepared / "caption/test.jsonl"):
        assert record["meta"]["references"] and record["messages"][1]["content"][0]["text"]


def test_counts_are_true_and_even():
    seen = Counter()
    for draw in draws("count", 200):
        shapes = [part.split(" at ")[0].split()[-1] for part in draw.about.split("; ")]
        every, of_shape = draw.asked
        assert every.answer == language.NUMBERS[len(shapes)]
        wanted = next(shape for shape in scenes.SHAPES if language.plural(shape) in of_shape.text)
        assert of_shape.answer == language.NUMBERS[shapes.count(wanted)]
        seen[every.answer] += 1
    assert len(seen) == 4 and min(seen.values()) > 25


def test_relations_are_true_and_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(one_picture, "scene_of", lambda random, number: ([A, B], Image.new("RGB", (64, 64))))
    truth = {
        "is the red circle left of the blue triangle?": "yes",
        "is the red circle right of the blue triangle?": "no",
        "is the blue triangle below the red circle?": "yes",
        "is the blue triangle above the red circle?": "no",
    }
    asked = [one_picture.relations(Random(number), "x").asked[0] for number in range(200)]
    assert truth.items() <= {question.text: question.answer for question in asked}.items()
    assert 70 < sum(question.answer == "yes" for question in asked) < 130
    near = Thing("circle", "red", 10, 10, 4, 4), Thing("star", "blue", 13, 40, 4, 4)
    monkeypatch.setattr(one_picture, "scene_of", lambda random, number: (list(near), Image.new("RGB", (64, 64))))
    assert all("left" not in one_picture.relations(Random(n), "x").asked[0].text for n in range(40))


def test_existence_is_asked_as_pope_does(tmp_path: Path, prepared: Path, records_of):
    for draw in draws("pope", 60):
        there = {tuple(part.split(" at ")[0].split()[1:]) for part in draw.about.split("; ")}
        for asked in draw.asked:
            colour, shape = asked.text.removesuffix(" in the image?").split()[-2:]
            assert ((colour, shape) in there) == (asked.answer == "yes")
            if asked.answer == "no" and asked.meta["type"] == "adversarial":
                assert any(colour == c or shape == s for c, s in there)
            if asked.answer == "no" and asked.meta["type"] == "popular":
                assert shape in one_picture.FREQUENT
        assert Counter((a.meta["type"], a.answer) for a in draw.asked) == {
            (kind, answer): 1 for kind in ("random", "popular", "adversarial") for answer in ("yes", "no")
        }
    records = records_of(prepared / "pope/test.jsonl")
    said = {record["id"]: "yes" for record in records}
    lines = pope.write_results(records, said, tmp_path / "r.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"question": records[0]["meta"]["question"], "answer": "yes"}


def test_statements_have_two_true_and_two_false_pairs(tmp_path: Path, prepared: Path, records_of):
    for draw in draws("nlvr2", 6):
        assert sorted(asked.answer for asked in draw.asked) == ["false", "false", "true", "true"]
        assert len({asked.text for asked in draw.asked}) == 1 and len(draw.pictures) == 8
        assert [asked.pictures for asked in draw.asked] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    records = records_of(prepared / "nlvr2/test.jsonl")
    assert records[1]["id"] == "test-0-1-0" and records[1]["images"] == ["images/test/0-2.png", "images/test/0-3.png"]
    path = nlvr2.write_results(records, {record["id"]: "true" for record in records}, tmp_path / "r.csv")
    assert path.read_text().splitlines()[1] == "test-0-1-0,True"


def test_statements_hold_where_they_say_so():
    found = {}
    for number in range(400):
        sentence, _, holds = pairs._statement(Random(number))
        found[sentence] = holds
    truth = {
        "both images show a circle.": [([A], [A]), ([A], [B])],
        "one image alone shows a triangle.": [([A], [B]), ([B], [B])],
        "the left image shows a circle.": [([A], [B]), ([B], [A])],
        "a blue object is in one of the images.": [([A], [B]), ([A], [A])],
        "the right image has more objects than the left one.": [([A], [A, B]), ([A], [B])],
        "the two images show three objects in all.": [([A], [A, B]), ([A], [B])],
    }
    for sentence, (so, not_so) in truth.items():
        assert found[sentence](*so) and not found[sentence](*not_so), sentence


def test_questions_are_those_of_the_conversations_without_captions():
    asked = [asked for draw in draws("questions", 150) for asked in draw.asked]
    assert not [one for one in asked if one.answer.startswith(("a ", "an ")) or "it?" in one.text]
    answers = Counter(one.answer for one in asked)
    assert 0.8 < answers["yes"] / answers["no"] < 1.25 and len(answers) > 25
    assert {one.meta["type"] for one in asked if one.answer in ("yes", "no")} == {"yes/no"}


def test_places_are_true_and_single():
    for draw in draws("places", 40):
        things = {
            name.split(" ", 1)[1]: (place, name.split()[0])
            for name, place in (part.split(" at the ") for part in draw.about.split("; "))
        }
        assert 2 <= len(things) <= 4
        for asked in draw.asked:
            if asked.meta["type"] == "thing":
                place = asked.text.removeprefix("what is at the ").rstrip("?")
                (name,) = [name for name, (where, _) in things.items() if where == place]
                assert asked.answer == language.article(name)
            else:
                place, size = things[asked.text.split(" the ")[1].rstrip("?")]
                assert asked.answer == (f"at the {place}" if asked.meta["type"] == "place" else size)


def test_names_say_less_than_a_caption():
    for draw in draws("names", 30):
        (asked,) = draw.asked
        parts = draw.about.split("; ")
        names = [" ".join(part.split(" at ")[0].split()[1:]) for part in parts]
        assert sorted(part.split(" ", 1)[1] for part in asked.answer.replace(" and ", ", ").split(", ")) == sorted(
            names
        )
        assert not set(asked.answer.split()) & {"small", "large", "at", "top", "left"}


def test_pair_questions_are_true_and_no_statements():
    found: dict[str, set[str]] = {}
    for number in range(300):
        random = Random(number)
        for kind, made in pair_questions._kinds(random, [A], [A, B]).items():
            for text, answer in made:
                found.setdefault(text, set()).add(answer)
                assert kind in ("both", "one", "any", "side", "more", "count", "sum", "color")
    truth = {
        "do both pictures show a circle?": "yes",
        "do both pictures show a blue object?": "no",
        "does just one of the pictures show a triangle?": "yes",
        "does just one of the pictures show a circle?": "no",
        "does any of the pictures show a star?": "no",
        "does the left picture show a triangle?": "no",
        "does the right picture show a blue object?": "yes",
        "which picture has more objects?": "right",
        "how many objects are in the left picture?": "one",
        "how many objects do the pictures show together?": "three",
        "name the color of the triangle in the right picture.": "blue",
    }
    assert all(found[text] == {answer} for text, answer in truth.items())
    draw = draws("pair-questions", 1)[0]
    assert len(draw.pictures) == 2 and len({asked.text for asked in draw.asked}) == pair_questions.QUESTIONS
    statements = {pairs._statement(Random(number))[0] for number in range(400)}
    assert not statements & set(found)


def test_words_are_drawn():
    for draw in draws("ocr", 20):
        assert draw.about.lower() == draw.asked[0].answer and 3 <= len(draw.about) <= 4
        pixels = np.asarray(draw.pictures[0]).astype(int)
        ink = (np.abs(pixels - pixels[0, 0]).sum(-1) > 120).nonzero()
        assert 5 < np.ptp(ink[0]) + 1 <= max(words.SIZES) and np.ptp(ink[1]) > np.ptp(ink[0])


def test_clips_move_as_they_say():
    seen = Counter()
    for draw in draws("clips", 40):
        (asked,) = draw.asked
        shots = [np.asarray(picture).astype(int) for picture in draw.pictures]
        inked = [np.argwhere(np.abs(shot - shot[0, 0]).sum(-1) > 60) for shot in (shots[0], shots[-1])]
        (y0, x0), (y1, x1) = (points.mean(0) for points in inked)
        before, after = map(len, inked)
        truth = {"left": x1 < x0 - 20, "right": x1 > x0 + 20, "up": y1 < y0 - 20, "down": y1 > y0 + 20}
        truth |= {"it grows": after > 2 * before, "it shrinks": 2 * after < before}
        assert truth[asked.answer] and sum(truth.values()) == 1, asked
        seen[asked.answer] += 1
    assert len(seen) == 6


def test_clips_as_features_tell_frames_apart(prepared: Path, records_of):
    records = records_of(prepared / "clip-features/test.jsonl")
    name = records[0]["meta"]["features"]
    assert measure((name,), prepared / "clip-features") == (name, (clips.FRAMES, clips.WIDTH))
    values = np.load(prepared / "clip-features" / name)
    assert values.dtype == np.float32 and np.abs(np.diff(values, axis=0)).max(1).min() > 0.01
    assert records[0]["images"] == [] and records[0]["meta"]["frames"] == clips.FRAMES


def test_presence_belongs_to_the_conversations(tmp_path: Path):
    with pytest.raises(MmdoraError, match="--presence"):
        scenes.prepare(tmp_path, kind="count", presence=0.5)
