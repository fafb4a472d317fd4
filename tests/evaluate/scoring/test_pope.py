"""Worked examples of POPE's evaluate.py and of NLVR2's eval/metrics.py."""

import pytest

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.pope import says_yes
from mmdora.evaluate.scoring.scorers import score_rows


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("No, there is none.", False),
        ("There is not a dog", False),
        ("Yes. There is no cat.", True),  # the first sentence only
        ("NO", True),  # the official reading knows `No` and `no`
        ("Nothing", True),
        ("", True),
    ],
)
def test_reading(text, yes):
    assert says_yes(text) == yes


def rows(split: str, true_yes: str, true_no: str) -> list[dict]:
    """One row for each letter, y or n: what is said where the label is yes, and where it is no."""
    said = [("yes", letter) for letter in true_yes] + [("no", letter) for letter in true_no]
    return [
        {
            "id": f"{split}-{i}",
            "answer": label,
            "prediction": {"y": "Yes", "n": "No"}[letter],
            "images": [f"{i}.jpg"],
            "meta": {"type": split},
        }
        for i, (label, letter) in enumerate(said)
    ]


def test_five_numbers_of_each_split_and_the_mean_f1():
    # random: TP 3, FN 1, FP 1, TN 3; adversarial: TP 2, FN 2, FP 4, TN 0
    scores = score_rows("pope", rows("random", "yyyn", "ynnn") + rows("adversarial", "yynn", "yyyy"))
    assert {name: part.value for name, part in scores.details.items()} == pytest.approx(
        {
            "random accuracy": 0.75,
            "random precision": 0.75,
            "random recall": 0.75,
            "random F1": 0.75,
            "random yes ratio": 0.5,
            "adversarial accuracy": 0.25,
            "adversarial precision": 1 / 3,
            "adversarial recall": 0.5,
            "adversarial F1": 0.4,
            "adversarial yes ratio": 0.75,
        }
    )
    assert {name: (part.value, part.n) for name, part in scores.by_type.items()} == {
        "adversarial": (pytest.approx(0.4), 8),
        "random": (0.75, 8),
    }
    assert scores.overall.value == pytest.approx((0.75 + 0.4) / 2) and scores.metric == "mean F1"
    assert scores.overall.interval and scores.overall.interval[0] < scores.overall.value < scores.overall.interval[1]


def test_a_model_that_never_says_yes_scores_nought():
    scores = score_rows("pope", rows("random", "nn", "nn"))
    assert scores.overall.value == 0 and scores.details["random precision"].value == 0
    assert scores.details["random accuracy"].value == 0.5


def test_another_label_is_an_error():
    with pytest.raises(MmdoraError, match="label is yes or no, not 'maybe'"):
        score_rows("pope", [rows("random", "y", "")[0] | {"answer": "maybe"}])


def pair(identifier: str, label: str, prediction: str) -> dict:
    return {
        "id": identifier,
        "answer": label,
        "prediction": prediction,
        "images": [],
        "meta": {"identifier": identifier},
    }


def test_nlvr2_consistency_is_by_sentence():
    given = [
        pair("test1-0-0-0", "true", "Yes."),
        pair("test1-0-1-0", "False", "False"),  # sentence 0 of set 0: all right
        pair("test1-0-0-1", "True", "True"),
        pair("test1-0-1-1", "True", "False"),  # sentence 1: not
        pair("test1-1-0-0", "False", "false"),  # set 1
    ]
    scores = score_rows("nlvr2", given)
    assert scores.overall.value == 0.8
    assert scores.details["consistency"].value == pytest.approx(2 / 3) and scores.details["consistency"].n == 3
    with pytest.raises(MmdoraError, match="split-set-pair-sentence, not 'test1-0'"):
        score_rows("nlvr2", [pair("test1-0", "True", "True")])
