"""Worked examples of LLaVA's eval_science_qa.py, ScienceQA's evaluate_acc.py and MMBench's scorer."""

import pytest

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.choice import match_option, parse_letter
from mmdora.evaluate.scoring.scorers import score_rows


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" B ", "B"),
        ("B. a magnet", "B"),
        ("B\na magnet", "B"),
        ("It is round. The answer is B.", "B"),
        ("The answer is C, so C", "C"),
        ("The answer is A, no. The answer is B.", "B"),  # the form with a period is looked for first
        ("B.", None),
        ("b", None),
        ("(B)", None),
        ("magnet", None),
        ("", None),
        ("E", None),  # not among four, and it ends the search
        ("E. The answer is B.", None),
    ],
)
def test_letter_as_llava_reads_it(text, letter):
    assert parse_letter(text, 4) == letter


def test_more_than_five_options():
    assert parse_letter("G", 7) == "G" and parse_letter("G", 6) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("Answer:  B.", "B"),
        ("A", "A"),
        ("A dog", "A"),  # two words: the letter
        ("A dog on grass", None),  # four: the article, and no option is in the text
        ("A black cat on grass", None),  # `cat` and `black cat` both are
        ("A bird on grass", "C"),
        ("A. or B.", None),
        ("b", None),
        ("E bird", None),  # not among four, and it ends the search
    ],
)
def test_option_as_mmbench_reads_it(text, letter):
    assert match_option(text, ["cat", "black cat", "bird", "fish"]) == letter


def science(name: int, prediction: str, answer: str = "A", images: int = 0, **meta: object) -> dict:
    given = {"choices": ["x", "y", "z"], "subject": "natural science", "grade": "grade2", "hint": ""}
    pictures = [f"{name}.png"] * images
    return {"id": str(name), "answer": answer, "prediction": prediction, "images": pictures, "meta": given | meta}


def test_scienceqa_columns():
    rows = [
        science(0, "A", images=1, hint="Read."),
        science(1, "B", images=1),
        science(2, "C", hint="Read.", subject="social science", grade="grade7"),
        science(3, "The answer is A.", subject="language science", grade="grade12"),
        science(4, "I do not know"),
    ]
    scores = score_rows("scienceqa", rows)
    assert scores.overall.value == 0.4 and scores.counts == {"unparsable": 1}
    assert {kind: (part.value, part.n) for kind, part in scores.by_type.items()} == {
        "natural science": (pytest.approx(1 / 3), 3),
        "social science": (0, 1),
        "language science": (1, 1),
        "text": (0.5, 2),
        "image": (0.5, 2),
        "no context": (0.5, 2),
        "grade 1-6": (pytest.approx(1 / 3), 3),
        "grade 7-12": (0.5, 2),
    }


def test_an_answer_outside_the_choices_is_an_error():
    with pytest.raises(MmdoraError, match="row 0: the answer 'D' names none of its 3 choices"):
        score_rows("choice", [science(0, "A", answer="D")])


def bench(index: int, answer: str, prediction: str, options: tuple[str, ...] = ("cat", "dog"), kind: str = "x") -> dict:
    meta = {"index": index, "choices": list(options), "type": kind, "l2_category": f"l2 {kind}"}
    return {"id": str(index), "answer": answer, "prediction": prediction, "images": [f"{index}.jpg"], "meta": meta}


@pytest.fixture
def rounds():
    return [
        bench(1, "A", "A"),
        bench(1_000_001, "B", "B", ("dog", "cat")),
        bench(2, "A", "A", kind="y"),
        bench(1_000_002, "B", "dog", ("dog", "cat"), kind="y"),
        bench(3, "B", "hm", kind="y"),
        bench(1_000_003, "A", "A", ("dog", "cat"), kind="y"),
    ]


def test_circular_needs_every_rotation_right(rounds):
    scores = score_rows("mmbench", rounds)
    assert scores.metric == "CircularEval accuracy"
    assert scores.overall.value == pytest.approx(1 / 3) and scores.overall.n == 3
    assert scores.details["plain"].value == pytest.approx(2 / 3)
    assert {kind: (part.value, part.n) for kind, part in scores.by_type.items()} == {
        "l2 x": (1, 1),
        "x": (1, 1),
        "l2 y": (0, 2),
        "y": (0, 2),
    }
    assert scores.counts == {"unparsable": 1}


def test_plain_leaves_rotations_out(rounds):
    scores = score_rows("mmbench-plain", rounds)
    assert scores.overall.value == pytest.approx(2 / 3) and scores.overall.n == 3
    assert score_rows("mmbench-plain", rounds[::2]) == scores and scores.counts == {"unparsable": 1}
    rounds[1]["prediction"] = "hm"
    assert score_rows("mmbench-plain", rounds) == scores


def test_circular_without_all_rotations_is_an_error(rounds):
    with pytest.raises(MmdoraError, match="question 3: CircularEval needs it and its rotations, 2 rows; found 1"):
        score_rows("mmbench", rounds[:5])
