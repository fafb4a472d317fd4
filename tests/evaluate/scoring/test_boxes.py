import pytest

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.scorers import score_rows


def row(answer, prediction):
    return {"id": prediction, "answer": answer, "prediction": prediction}


def test_a_box_is_right_from_an_iou_of_a_half_on():
    rows = [
        row("[0, 0, 10, 10]", "it is [0, 0, 10, 5]"),  # 0.5
        row("[0, 0, 10, 10]", "[0, 0, 10, 4] or [0, 0, 10, 10]"),  # The first one counts: 0.4.
        row("(0,0),(10,10)", "(0,0),(10,10)"),
        row("[0, 0, 10, 10]", "nowhere"),
    ]
    scores = score_rows("boxes", rows)
    assert scores.each == (1, 0, 1, 0) and scores.overall.value == 0.5 and scores.metric == "accuracy at IoU 0.5"
    assert scores.details["mean IoU"].value == pytest.approx(1.9 / 4) and scores.counts == {"unparsable": 1}


def test_a_reference_without_a_box_is_named():
    with pytest.raises(MmdoraError, match="row it: its answer 'left' has no box"):
        score_rows("boxes", [row("left", "it")])
