"""The first label counts, as in LLM-Adapters' scorer; likelihoods name an option by sum or per character."""

import pytest

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.scorers import score_rows, submitted


def row(label, text):
    return {"id": "1", "answer": f"the correct answer is {label}", "prediction": text, "meta": {"answer": label}}


@pytest.mark.parametrize(
    ("label", "text", "named"),
    [
        ("answer2", "the correct answer is answer2", "answer2"),
        ("answer2", "answer1, no: answer2", "answer1"),
        ("answer2", "answer5 of four", "answer5"),  # The published scorer looks for five, however many there are.
        ("answer2", "Answer2", ""),  # Upper and lower case differ there.
        ("answer2", "nothing\n### Response: answer2", ""),
        ("solution1", "solution2", "solution2"),
        ("ending4", "the correct answer is ending4.", "ending4"),
        ("option1", "option3 or option1", "option1"),
        ("true", "it is untrue", "true"),
        ("false", "False", ""),
    ],
)
def test_the_first_label_counts(label, text, named):
    assert submitted("commonsense", row(label, text)) == named
    scores = score_rows("commonsense", [row(label, text)])
    assert scores.overall.value == (named == label) and scores.counts == {"unparsable": int(not named)}


def test_the_most_likely_option_by_sum_and_per_character():
    choices = {"id": "1", "answer": "B", "prediction": "[[-4.0, 2], [-6.0, 6], [-9, 5]]", "meta": {"choices": [*"abc"]}}
    assert submitted("likelihood", choices) == "A" and submitted("likelihood-per-character", choices) == "B"
    assert score_rows("likelihood", [choices]).overall.value == 0
    assert score_rows("likelihood-per-character", [choices]).overall.value == 1
    boolean = {"id": "2", "answer": "yes", "prediction": "[[-4.0, 2], [-3.0, 3]]", "meta": {}}
    assert submitted("likelihood", boolean) == "yes" and score_rows("likelihood", [boolean]).overall.value == 1
    with pytest.raises(MmdoraError, match="row 2: the prediction 'yes' is no likelihood of each option"):
        submitted("likelihood", boolean | {"prediction": "yes"})
