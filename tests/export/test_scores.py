"""Scores of an evaluation for a card: with metric and interval, and no file is taken that is none or was changed."""

import json

import pytest

from mmdora.errors import MmdoraError
from mmdora.export.scores import read_scores, shown
from mmdora.files import with_checksum, write_json

OVERALL = {"score": 0.5, "n": 1200, "interval95": [0.472, 0.528]}


def result(folder, **values):
    whole = {"n": 1200, "task": "boolq", "metric": "accuracy", "overall": OVERALL, "model": "0" * 64, **values}
    folder.mkdir(exist_ok=True)
    write_json(folder / "metrics.json", with_checksum(whole))
    return folder / "metrics.json"


def test_results_of_an_evaluation(tmp_path):
    files = [result(tmp_path / "a"), result(tmp_path / "b", task="caption", metric="CIDEr").parent]
    scores = read_scores(files)
    assert scores["boolq"] == {"metric": "accuracy", **OVERALL}
    assert shown(scores["boolq"]) == "accuracy 50.0% (95% interval 47.2% to 52.8%), 1,200 questions"
    assert shown(scores["caption"]) == "CIDEr 50.0 (95% interval 47.2 to 52.8), 1,200 questions"
    assert [shown(value) for value in (0.953, 9673, "good")] == ["95.3%", "9673", "good"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overall": {**OVERALL, "score": 0.9}}, "was changed since; evaluate again"),
        ({"task": None}, "is no metrics.json of `mmdora eval`"),
    ],
)
def test_a_changed_file_is_refused(tmp_path, change, message):
    path = result(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(MmdoraError, match=message):
        read_scores([tmp_path])


def test_what_has_no_scores_is_refused(tmp_path):
    with pytest.raises(MmdoraError, match="only an official server can score boolq"):
        read_scores([result(tmp_path, overall=None, server=True)])
    with pytest.raises(MmdoraError, match="a second result of boolq"):
        read_scores([result(tmp_path / "a"), result(tmp_path / "b")])
    with pytest.raises(MmdoraError, match=r"metrics\.json"):
        read_scores([tmp_path / "nowhere" / "metrics.json"])
