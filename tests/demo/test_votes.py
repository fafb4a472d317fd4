import json
import os
import resource
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from mmdora.demo.session import Session
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
    assert row.pop("time").endswith("+00:00") and len(row.pop("id")) == 16
    assert row == {
        "models": ["dora", "base"],
        "vote": "dora",
        "question": "what?",
        "settings": {
            "max_tokens": 128,
            "temperature": 0.0,
            "top_p": 1.0,
            "seed": 4,
            "system_prompt": "",
            "strength": 1.0,
        },
        "answers": {"base": "says base", "dora": "says dora"},
        "pictures": ["f00"],
    }


def test_a_file_goes_on_where_it_stopped(tmp_path):
    file = tmp_path / "votes.jsonl"
    Votes(NAMES, file).add(TURN, ["f00"])
    assert Votes(NAMES, file).counts == {"dora": 1}
    assert Votes(("base", "other"), file).counts == {}


def test_a_line_that_a_full_disk_cut_short_is_taken_out_at_the_next_start(tmp_path, capsys):
    file = tmp_path / "votes.jsonl"
    Votes(NAMES, file).add(TURN, ["f00"])
    whole = file.read_bytes()
    for cut in (1, 12, 100):
        file.write_bytes(whole + whole[:cut])
        assert Votes(NAMES, file).counts == {"dora": 1} and file.read_bytes() == whole
        assert f"votes.jsonl: the last line was cut short ({cut} bytes" in capsys.readouterr().err
    kept = (tmp_path / "votes.jsonl.torn").read_bytes()
    assert kept == b"".join(whole[:cut] + b"\n" for cut in (1, 12, 100))


def test_a_full_disk_leaves_whole_lines_only(tmp_path):
    """No file may grow to more than the limit, as on a disk that is full: a part of the line would still fit."""
    file = tmp_path / "votes.jsonl"
    votes = Votes(NAMES, file)
    votes.add(TURN, ["f00"])
    whole, (soft, hard) = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 50, hard))
    told = rf"too large; {len(whole):,} bytes were to be written, [\d,]+ bytes are free"
    try:
        with pytest.raises(MmdoraError, match=told):
            votes.add(TURN, ["f00"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == whole and votes.counts == {"dora": 1}


def test_two_pages_do_not_write_to_one_file(tmp_path):
    file = tmp_path / "votes.jsonl"
    first = Votes(NAMES, file)
    with pytest.raises(MmdoraError, match=rf"votes\.jsonl: another run is writing there \(process {os.getpid()} on"):
        Votes(NAMES, file)
    first.close()
    Votes(NAMES, file).close()
    assert [path.name for path in tmp_path.iterdir()] == ["votes.jsonl"]


def test_a_vote_can_be_taken_back(tmp_path):
    file = tmp_path / "votes.jsonl"
    votes = Votes(NAMES, file)
    first, second = votes.add(TURN, ["f00"]), votes.add(replace(TURN, vote="base"), ["f00"])
    votes.add(TURN, ["f00"])
    votes.take_back(TURN, first)
    assert votes.counts == {"base": 1, "dora": 1}
    assert [json.loads(line)["vote"] for line in file.read_text().splitlines()] == ["dora", "base", "dora", "undone"]
    votes.close()
    assert Votes(NAMES, file).counts == {"base": 1, "dora": 1}
    assert second != first


def test_a_vote_counts_if_its_taking_back_cannot_be_written(tmp_path):
    file = tmp_path / "votes.jsonl"
    votes = Votes(NAMES, file)
    name = votes.add(TURN, ["f00"])
    file.unlink()
    file.mkdir()
    with pytest.raises(MmdoraError, match=r"The vote still counts: it cannot be written \(Is a directory\)"):
        votes.take_back(TURN, name)
    assert votes.counts == {"dora": 1}


def test_a_file_of_before_votes_had_names_is_read(tmp_path):
    file = tmp_path / "votes.jsonl"
    file.write_text('{"time": "", "models": ["dora", "base"], "vote": "dora"}\n')
    assert Votes(NAMES, file).counts == {"dora": 1}


@pytest.mark.parametrize(
    ("texts", "place", "vote"),
    [
        (("red", "blue"), 0, "dora"), (("red", "red"), 0, "tie"), (("red", "red"), "all bad", "all bad"),
        (("red", "red", "blue"), 1, "tie"), (("red", "red", "blue"), 2, "base"),
    ],
)  # fmt: skip
def test_a_vote_for_an_answer_that_another_gave_is_a_tie(texts, place, vote):
    names = ("base", "dora", "lora")[: len(texts)]
    order = {2: (1, 0), 3: (2, 1, 0)}[len(texts)]
    shown = {index: text for index, text in zip(order, texts, strict=True)}
    answers = tuple(Answer(name, "done", shown[index]) for index, name in enumerate(names))
    tab = Session([Turn("what?", AnswerSettings(), answers, order, True)])
    assert tab.voted(place).vote == vote


@pytest.mark.parametrize("content", ["{", "[1]\n", '{"vote": 1}\n', '{"vote": "undone", "models": []}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    file = tmp_path / "votes.jsonl"
    file.write_text(content)
    with pytest.raises(MmdoraError, match="is no file of votes"):
        Votes(NAMES, file)
    assert file.read_text() == content


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path):
    with pytest.raises(MmdoraError, match="cannot be written"):
        Votes(NAMES, tmp_path)
