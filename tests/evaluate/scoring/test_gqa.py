"""GQA's eval.py gone through by hand on six questions."""

import pytest

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.scorers import score_rows


def question(name: str, answer: str, prediction: str, **meta: object) -> dict:
    types = {"structural": "query", "semantic": "attr", "detailed": "color"} | dict(meta.pop("types", {}))  # type: ignore[call-overload]
    given = {
        "isBalanced": True,
        "types": types,
        "groups": {"global": "color"},
        "entailed": [name],
        "choices": {"valid": ["red", "blue", "green"], "plausible": ["red"]},
    }
    return {"id": name, "answer": answer, "prediction": prediction, "images": [f"{name[0]}.jpg"], "meta": given | meta}


@pytest.fixture
def rows():
    binary = {"structural": "verify", "semantic": "rel", "detailed": "existRel"}
    return [
        question("a1", "red", "Red.", entailed=["a1", "a2", "a3"]),  # right; of what it entails one of two is right
        question("b1", "red", "blue", entailed=["a3"]),  # wrong, so what it entails does not count
        question("b2", "blue", "green"),
        question(
            "a2", "yes", "yes", types=binary, groups={"global": None}, choices={"valid": ["yes"], "plausible": []}
        ),
        question("a3", "yes", "no", isBalanced=False, types=binary),
        question("a4", "no", "no", isBalanced=False, types=binary, entailed=["a3"]),
    ]


def test_accuracy_is_over_balanced_questions(rows):
    scores = score_rows("gqa", rows)
    assert scores.overall.value == 0.5 and scores.overall.n == 4
    assert {kind: (part.value, part.n) for kind, part in scores.by_type.items()} == {
        "open": (pytest.approx(1 / 3), 3),
        "structural: query": (pytest.approx(1 / 3), 3),
        "semantic: attribute": (pytest.approx(1 / 3), 3),
        "binary": (1, 1),
        "structural: verify": (1, 1),
        "semantic: relation": (1, 1),
    }


def test_other_numbers(rows):
    details = score_rows("gqa", rows).details
    assert details["validity"].value == 1 and details["plausibility"].value == 0.25
    assert details["consistency"].value == 0.5 and details["consistency"].n == 1
    # group color: red twice, predicted once: (1 - 2)^2 / 2; blue once, predicted once: 0; over 100
    assert details["distribution"].value == pytest.approx(0.005) and details["distribution"].interval is None


def test_what_two_things_have_in_common(rows):
    rows[0] |= {"answer": "shape", "prediction": "shape"}
    rows[0]["meta"]["types"]["detailed"] = "twoCommon"
    assert score_rows("gqa", rows).details["validity"].value == 1  # though the choices do not hold it


def test_numbers_that_the_files_do_not_allow_are_said(rows):
    for row in rows:
        del row["meta"]["choices"], row["meta"]["groups"]
    scores = score_rows("gqa", rows[:4])
    assert not scores.details
    assert set(scores.left_out) == {"validity", "plausibility", "consistency", "distribution"}
    assert scores.left_out["consistency"] == "1 entailed questions have no prediction"


def test_rows_of_the_balanced_file_alone():
    bare = [{"id": "1", "answer": "red", "prediction": "red", "images": ["a.jpg"], "meta": {}}]
    assert score_rows("gqa", bare).overall.value == 1
    with pytest.raises(MmdoraError, match="none of the 1 rows counts"):
        score_rows("gqa", [bare[0] | {"meta": {"isBalanced": False}}])
