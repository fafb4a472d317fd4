"""Worked examples of three scorers: GT-Vision-Lab/VQA's vqaEval.py (master), VizWiz's vqaEval.py and
MMF's m4c_evaluators.py, each gone through by hand.
"""

import pytest

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.scorers import score_rows
from mmdora.evaluate.scoring.vqa import (
    CONTRACTIONS,
    agreement,
    clean,
    evalai,
    textvqa_accuracy,
    vizwiz_accuracy,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two, dogs!", "2 dogs"),  # a mark beside a space goes, another becomes a space
        ("t-shirt", "t shirt"),
        ("well - done", "well done"),
        ("1,000 t-shirts", "1000 tshirts"),  # a comma between digits: every mark goes without a space
        ("St. John.", "st john"),
        ("3.5 p.m.", "3.5 pm"),  # a period before a digit stays
        (".5", ".5"),
        ("2:30", "2:30"),  # colon and apostrophe are no marks
        ("the girl's", "girl's"),
        ("None", "0"),
        ("ten", "10"),
        ("A cat on the mat and an owl", "cat on mat and owl"),
        ("dont", "don't"),
        ("it'dve", "it'd've"),
        ("y'alld've", "y'all'd've"),
        ("'ows'at", "'ow's'at"),
        ("somebody'd", "somebodyd"),  # as the official table has it
        ("shes wed", "shes wed"),  # it has no entry for these
        ("IM", "im"),  # its entries with a capital never meet a lower-cased word
        ("x" + "." * 40, "x" + "." * 8),  # re.UNICODE, 32, is handed to `sub` as the count
    ],
)
def test_clean(text, expected):
    assert clean(text) == expected


def test_the_official_table_has_114_entries_that_can_be_met():
    assert len(CONTRACTIONS) == 114


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_nine_of_ten(matches, expected):
    # three matches: three people see two others, seven see three: (3 * 2/3 + 7 * 1) / 10
    assert agreement("dog", ["dog"] * matches + ["cat"] * (10 - matches)) == pytest.approx(expected)


def test_people_are_dropped_by_index():
    # dropping every annotation that equals the one left out would leave none of the three: 0.7
    assert vizwiz_accuracy("dog", ["dog"] * 3 + ["cat"] * 7) == pytest.approx(0.9)


def test_one_answer_is_no_agreement():
    with pytest.raises(MmdoraError, match="several people"):
        vqa_accuracy("dog", ["dog"])


def test_vqav2_cleans_only_where_people_differ():
    assert vqa_accuracy("two", ["2"] * 10) == 0
    assert vqa_accuracy("two", ["2"] * 9 + ["3"]) == 1
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 0
    assert vqa_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1
    assert vqa_accuracy(" YES\n", ["yes"] * 10) == 1  # case and outer white space never count
    assert vqa_accuracy("a dog", ["The dog"] * 9 + ["cat"]) == 1


def test_vizwiz_cleans_the_prediction_only():
    assert vizwiz_accuracy("Coca-Cola", ["coca cola"] * 10) == 1
    assert vizwiz_accuracy("Coca-Cola", ["Coca-Cola"] * 10) == 0


def test_textvqa_always_cleans_all_and_splits_the_possessive():
    assert evalai("McDonald's, USA?") == "mcdonald 's usa"
    assert evalai("whats") == "what's"
    assert textvqa_accuracy("Two", ["2"] * 10) == 1
    assert textvqa_accuracy("McDonald's", ["mcdonald 's"] * 10) == 1
    assert textvqa_accuracy("1,000", ["1000"] * 3 + ["1.000"] * 7) == pytest.approx(0.9)


def row(name: int, prediction: str, answers: list[str], **meta: object) -> dict:
    return {
        "id": str(name),
        "answer": answers[0],
        "prediction": prediction,
        "images": [f"{name // 2}.jpg"],
        "meta": {"answers": answers, **meta},
    }


def test_vqav2_rows_are_scored_as_submitted():
    rows = [
        row(0, "Yes.", ["yes"] * 10, type="yes/no"),  # LLaVA hands in `yes`
        row(1, "two", ["2"] * 8 + ["3"] * 2, type="number"),
        row(2, "McDonald's", ["mcdonald's"] * 10, type="other"),  # LLaVA hands in `mcdonald 's`
        row(3, "dog", ["dog"] * 2 + ["cat"] * 8, type="other"),
    ]
    scores = score_rows("vqav2", rows)
    assert scores.each == pytest.approx((1, 1, 0, 0.6))
    assert scores.overall.value == pytest.approx(0.65) and scores.metric == "soft accuracy"
    assert {kind: (part.value, part.n) for kind, part in scores.by_type.items()} == {
        "yes/no": (1, 1),
        "number": (1, 1),
        "other": (pytest.approx(0.3), 2),
    }
    assert next(iter(scores.by_type)) == "yes/no"


def test_vizwiz_tells_unanswerable():
    """sklearn's average_precision_score and f1_score of the class "unanswerable", by hand.

    Predicted 1 1 0 0 0, true 1 0 1 0 0: precision and recall 1/2 at threshold 1, 2/5 and 1 at 0:
    average precision 1/2 * 1/2 + 1/2 * 2/5 = 0.45; F1 = 2/(2 + 1 + 1) = 0.5; right 3 of 5.
    """
    said = ["Unanswerable.", "unanswerable", "dog", "dog", "dog"]
    rows = [
        row(i, text, ["dog"] * 10, answerable=a) for i, (text, a) in enumerate(zip(said, (0, 1, 0, 1, 1), strict=True))
    ]
    details = score_rows("vizwiz", rows).details
    assert {name: part.value for name, part in details.items()} == pytest.approx(
        {"unanswerable average precision": 0.45, "unanswerable F1": 0.5, "unanswerable accuracy": 0.6}
    )
    del rows[0]["meta"]["answerable"]
    scores = score_rows("vizwiz", rows)
    assert not scores.details and "unanswerable" in scores.left_out


def test_a_test_split_without_answers_is_named():
    hidden = row(7, "dog", ["dog"] * 10)
    del hidden["meta"]["answers"]
    with pytest.raises(MmdoraError, match=r"row 7: no 'meta\.answers'"):
        score_rows("vqav2", [hidden])
