import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.exact import exact_match, normalize
from mmdora.evaluate.scoring.metrics import answer_type, majority_baseline, question_text
from mmdora.evaluate.scoring.significance import mcnemar


def record(question: str, answer: str, **meta: str) -> Any:
    return {
        "id": f"{question}-{answer}",
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
        "images": ["a.png"],
        "meta": meta,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" Yes.\n", "yes"), ("light  BLUE", "light blue"), ("a circle", "a circle"), ("st. john", "st. john"), (".", "")],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


def test_exact_match_needs_the_whole_answer():
    assert exact_match("Teal.", "teal")
    assert not exact_match("teal circle", "teal")


def test_question_and_type_come_from_the_last_turn():
    row = record("What color?", "red")
    row["messages"] += record("Is it red? ", "Yes")["messages"]
    row["messages"][2]["content"].pop(0)
    assert question_text(row) == "Is it red?"
    assert answer_type(row) == "yes/no"
    assert answer_type(row | {"meta": {"type": "other"}}) == "other"


def test_majority_takes_the_first_of_equals_and_falls_back_for_new_questions():
    train = [record("a", "teal"), record("a", "green"), record("b", "green")]
    scores = majority_baseline(train, [record("A", "teal"), record("new", "green"), record("b", "teal")])
    assert (scores.overall.value, scores.n) == (pytest.approx(2 / 3), 3)


def test_majority_needs_training_records():
    with pytest.raises(MmdoraError, match="found none"):
        majority_baseline([], [record("a", "teal")])


def test_majority_counts_every_training_turn_and_asks_only_the_last_test_turn():
    both = record("a", "red")
    both["messages"] += record("b", "blue")["messages"]
    assert majority_baseline([both], [both, record("a", "red")]).overall.value == 1


def test_mcnemar_exact():
    # 2 against 10 discordant pairs: 2 * (1 + 12 + 66) / 2**12
    paired = mcnemar([True] * 2 + [False] * 10 + [True] * 5, [False] * 2 + [True] * 10 + [True] * 5)
    assert (paired.only_first, paired.only_second) == (2, 10)
    assert paired.p == pytest.approx(158 / 4096)
    assert mcnemar([True, False], [True, False]).p == 1.0
    assert (
        type(mcnemar(list(np.array([True, False])), list(np.array([False, True]))).only_first) is int
    )  # numpy's would overflow
    assert mcnemar([True] * 4000 + [False] * 5000, [False] * 4000 + [True] * 5000).p < 1e-20


def test_metrics_need_no_torch():
    code = "import sys, mmdora.evaluate.scoring.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
