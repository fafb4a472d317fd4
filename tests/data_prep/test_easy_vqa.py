"""easy-VQA as the package carries it, whole."""

from pathlib import Path

import pytest

from mmdora.data_prep import easy_vqa
from mmdora.evaluate.scoring.metrics import majority_baseline
from mmdora.records.reader import read_records


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("easy")
    assert easy_vqa.prepare(out) == {"train": 4000, "test": 9673}
    return out


def test_all_questions_are_there(prepared):
    train = read_records(prepared / "train.jsonl")
    assert sum(len(record["messages"]) // 2 for record in train) == 38575
    assert len(read_records(prepared / "train.jsonl", max_turns=1)) == 38575
    test = read_records(prepared / "test.jsonl")
    assert len(test) == 9673
    kinds = [record["meta"]["type"] for record in test]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"yes/no": 7136, "other": 2537}
    assert test[0]["messages"][0]["content"] == [{"type": "image"}, {"type": "text", "text": "what is the red shape?"}]
    assert test[0]["images"][0].path.is_file()


def test_the_majority_answers_two_of_three_questions(prepared):
    train, test = read_records(prepared / "train.jsonl"), read_records(prepared / "test.jsonl")
    scores = majority_baseline(train, test)
    assert scores.n == 9673
    assert f"{scores.overall.value:.3f}" == "0.670"
    assert f"{scores.by_type['yes/no'].value:.3f}" == "0.825"
    assert f"{scores.by_type['other'].value:.3f}" == "0.233"


def test_no_picture_is_in_both_splits(prepared):
    def hashes(split):
        return {path.read_bytes() for path in (prepared / "images" / split).glob("*.png")}

    train, test = hashes("train"), hashes("test")
    assert (len(train), len(test)) == (4000, 1000) and not train & test
