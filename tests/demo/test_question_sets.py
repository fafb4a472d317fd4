"""The sets of questions that a page offers, and its examples."""

import json

import pytest
import yaml
from PIL import Image

from mmdora.cli import main
from mmdora.config import ImageTokens
from mmdora.demo.question_sets import examples_of, question_sets
from mmdora.errors import MmdoraError
from mmdora.models.locate import Location


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Own pictures, of which some are held out."""
    root = tmp_path_factory.mktemp("own")
    for number in range(20):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(root / f"{number}.png")
    rows = [{"image": f"{n}.png", "question": f"what is number {n}?", "answer": str(n)} for n in range(20)]
    (root / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["prep", "folder", "--in", str(root / "t.jsonl"), "--images", str(root), "--held-out", "0.5"]
    assert main([*command, "--out", str(root / "data")]) == 0
    return root / "data"


def location(run):
    return Location("x", "tiny-llava", run / "adapter", run, ImageTokens())


def run_of(folder, **data):
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data, "adapt": {"language": {"method": "lora"}}}))
    return folder


def test_the_operators_file_comes_first(prepared):
    (only,) = question_sets(prepared, [])
    assert only.name == "data: test" and only.task.name == "folder" and len(only.rows) == 10
    (same,) = question_sets(prepared / "train.jsonl", [])
    assert len(same.rows) == 10
    with pytest.raises(MmdoraError, match="no such"):
        question_sets(prepared / "none.jsonl", [])


def test_what_a_run_held_out(prepared, tmp_path):
    train = str(prepared / "train.jsonl")
    (beside,) = question_sets(None, [location(run_of(tmp_path / "a", train=train))])
    (named,) = question_sets(None, [location(run_of(tmp_path / "b", train=train, eval=str(prepared / "test.jsonl")))])
    assert beside.rows[0]["id"] == named.rows[0]["id"] and len(beside.rows) == len(named.rows) == 10
    twice = [location(tmp_path / "a"), location(tmp_path / "a"), location(run_of(tmp_path / "c", train=train))]
    assert len(question_sets(None, twice)) == 1, "two runs on the same data offer it once"
    gone = location(run_of(tmp_path / "d", train=str(tmp_path / "gone" / "train.jsonl")))
    assert question_sets(None, [gone])[0].name == "easy-VQA: test"


def test_without_a_run_it_is_easy_vqa():
    (only,) = question_sets(None, [])
    assert len(only.rows) == 9_673 and only.rows[0]["images"][0].path.is_file()


def test_examples_are_different(prepared):
    (own,) = question_sets(prepared, [])
    examples = examples_of(own.rows)
    assert len({picture for picture, _ in examples}) == len({text for _, text in examples}) == 6
    assert len(examples_of(own.rows, 100)) == 10
