import json
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from mmdora.demo.turns import Answer, AnswerSettings, Turn
from mmdora.demo.votes import Votes, share
from mmdora.errors import MmdoraError

NAMES = ("base", "dora")
TURN = Turn(
    "what?", AnswerSettings(seed=4), tuple(Answer(name, "done", f"says {name}") for name in NAMES), (1, 0), True, "dora"
)


@pytest.mark.parametrize(("wins", "n"), [(0, 1), (1, 1), (3, 10), (50, 80)])
def test_the_interval_is_wilsons(wins, n):
    expected = binomtest(wins, n).proportion_ci(method="wilson")
    assert share(wins, n).interval == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert share(wins, n).value == wins / n


def test_votes_are_counted_and_only_then_kept_when_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    votes = Votes(NAMES)
    assert votes.tally() == {}
    for vote in ("dora", "tie", "dora", "all bad", "base"):
        votes.add(replace(TURN, vote=vote), ["f00"])
    assert {name: (score.value, score.n) for name, score in votes.tally().items()} == {
        "base": (1 / 3, 3),
        "dora": (2 / 3, 3),
    }
    assert list(tmp_path.iterdir()) == []


def test_a_vote_that_cannot_be_written_does_not_count(tmp_path):
    votes = Votes(NAMES, tmp_path / "votes.jsonl")
    (tmp_path / "votes.jsonl").unlink()
    (tmp_path / "votes.jsonl").mkdir()
    with pytest.raises(MmdoraError, match=r"not counted: it cannot be written \(Is a directory\)"):
        votes.add(TURN, ["f00"])
    assert votes.tally() == {}


def test_a_line_tells_what_was_voted_on_but_not_who(tmp_path):
    file = tmp_path / "new" / "votes.jsonl"
    Votes(NAMES, file).add(TURN, ["f00"])
    (row,) = map(json.loads, file.read_text().splitlines())
    assert row.pop("time").endswith("+00:00")
    assert row == {
        "models": ["dora", "base"],
        "vote": "dora",
        "question": "what?",
        "settings": {"max_tokens": 128, "temperature": 0.0, "top_p": 1.0, "seed": 4, "system_prompt": ""},
        "answers": {"base": "says base", "dora": "says dora"},
        "pictures": ["f00"],
    }


def test_a_file_goes_on_where_it_stopped(tmp_path):
    file = tmp_path / "votes.jsonl"
    Votes(NAMES, file).add(TURN, ["f00"])
    assert Votes(NAMES, file).counts == {"dora": 1}
    assert Votes(("base", "other"), file).counts == {}


@pytest.mark.parametrize("content", ["{", "[1]\n", '{"vote": 1}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    file = tmp_path / "votes.jsonl"
    file.write_text(content)
    with pytest.raises(MmdoraError, match="is no file of votes"):
        Votes(NAMES, file)
    assert file.read_text() == content


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path):
    with pytest.raises(MmdoraError, match="cannot be written"):
        Votes(NAMES, tmp_path)
