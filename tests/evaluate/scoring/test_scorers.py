import json
import subprocess
import sys

import pytest

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.scorers import SCORERS, score_rows, submitted
from mmdora.evaluate.scoring.scores import Score, Scores

ROWS = [
    {"id": "0", "answer": "teal", "prediction": " Teal.", "images": ["a.png"], "type": "other"},
    {"id": "1", "answer": "yes", "prediction": "no", "images": ["a.png"], "type": "yes/no"},
    {"id": "2", "answer": "no", "prediction": "no", "images": ["b.png"], "type": "yes/no"},
    {"id": "3", "answer": "no", "prediction": "No", "images": [], "type": "yes/no"},
]


def test_exact_rows():
    scores = score_rows("exact", ROWS)
    assert scores.each == (1, 0, 1, 1) and scores.metric == "exact match"
    assert (scores.overall.value, scores.n) == (0.75, 4)
    assert {kind: (part.value, part.n) for kind, part in scores.by_type.items()} == {
        "yes/no": (pytest.approx(2 / 3), 3),
        "other": (1, 1),
    }
    assert list(scores.by_type) == ["yes/no", "other"]
    assert scores.overall.interval == (0.5, 1.0)  # a.png thrice; or not at all


@pytest.mark.parametrize(
    ("task", "text", "handed_in"),
    [
        ("exact", " Teal.\n", "Teal."),
        ("vqav2", "Two dogs, yes?", "2 dogs yes"),  # LLaVA's convert_vqav2_for_submission.py
        ("gqa", "Teal..", "teal"),  # LLaVA's convert_gqa_for_eval.py
        ("nlvr2", "No.", "false"),
        ("scienceqa", "B. a magnet", "B"),
        ("choice", "(B)", ""),  # names none, as LLaVA reads it
        ("mmbench", "(B) ", "(B)"),  # read by the server
    ],
)
def test_what_is_handed_in_is_what_is_scored(task, text, handed_in):
    assert submitted(task, {"prediction": text, "meta": {"choices": ["a stone", "a magnet"]}}) == handed_in


def test_questions_about_one_clip_are_resampled_together():
    rows = [
        {"id": str(i), "answer": "a", "prediction": "ab"[i % 2], "meta": {"features": "clip.npz"}} for i in range(6)
    ]
    assert score_rows("exact", rows).overall.interval == (0.5, 0.5)
    alone = score_rows("exact", [row | {"meta": {}} for row in rows]).overall.interval
    assert alone and alone[0] < 0.5 < alone[1]


def test_the_same_seed_gives_the_same_intervals():
    rows = [row | {"id": f"{i}{row['id']}", "images": [f"{i}.png"]} for i in range(20) for row in ROWS[i % 3 :]]
    assert score_rows("exact", rows) == score_rows("exact", rows)
    assert score_rows("exact", rows, seed=1).overall != score_rows("exact", rows).overall


def test_scores_survive_their_file():
    scores = Scores(
        Score(0.5, 4, (0.1, 0.9)), {"a": Score(1.0, 2)}, {"d": Score(0.2, 4)}, {"c": 1}, {"v": "why"}, "CIDEr"
    )
    written = json.loads(json.dumps(scores.to_dict()))
    assert Scores.from_dict(written) == scores
    assert written["overall"] == {"score": 0.5, "n": 4, "interval95": [0.1, 0.9]}
    assert str(scores) == "all 50.0% [10.0%, 90.0%] of 4; a 100.0% of 2"


def test_an_unknown_task_is_named_with_its_neighbour():
    with pytest.raises(MmdoraError, match="no task 'vqa2'; did you mean 'vqav2'"):
        score_rows("vqa2", ROWS)


@pytest.mark.parametrize("task", SCORERS)
def test_no_rows(task):
    with pytest.raises(MmdoraError, match=f"task {task}: there are no rows"):
        score_rows(task, [])


def test_what_a_task_lacks_is_named():
    lacks = r"row 0: (no 'meta\.|a POPE label|the prediction|its answer 'teal' has no box)"
    for task in set(SCORERS) - {"exact", "gqa", "caption"}:
        with pytest.raises(MmdoraError, match=lacks):
            score_rows(task, ROWS[:1])


def test_scoring_needs_no_torch():
    modules = "mmdora.evaluate.scoring.scorers, mmdora.evaluate.scoring.significance"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
