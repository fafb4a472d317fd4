"""One question of a commonsense dataset, read from its row, and worded as LLM-Adapters word it.

The fields are those of the official files and of the copies on the hub, which `datasets` gives; the modules of
`mmdora.data_prep` name their sources. The wording is that of https://github.com/AGI-Edgerunners/LLM-Adapters
(dataset/TASK/test.json); HellaSwag's is that of a log of its evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmdora.errors import MmdoraError

BOOLQ, PIQA, SIQA, HELLASWAG = "boolq", "piqa", "siqa", "hellaswag"
WINOGRANDE, ARC, OPENBOOKQA = "winogrande", "arc", "openbookqa"
WORDS = {PIQA: "solution", SIQA: "answer", HELLASWAG: "ending", WINOGRANDE: "option", ARC: "answer"}
WORDS |= {OPENBOOKQA: "answer"}
"""Kind of a question -> what its options are called: `answer1`, `answer2`, …"""
TASKS = {
    PIQA: "Please choose the correct solution to the question",
    HELLASWAG: "Please choose the correct ending to complete the given sentence",
    WINOGRANDE: "Please choose the correct answer to fill in the blank to complete the given sentence",
    ARC: "Please choose the correct answer to the question",
}
"""Kind of a question -> the task's sentence; SIQA and OpenBookQA have that of ARC."""
TRUE_OR_FALSE = ("true", "false")


class Question(NamedTuple):
    """A question with its options.

    Attributes:
        kind: the dataset.
        name: its official id; None if the row has none.
        context: text that comes before the question; empty if there is none.
        question: the question itself; of WinoGrande the sentence, of HellaSwag the text to go on with.
        options: what can be chosen; of BoolQ true and false.
        right: index of the right option; None if the file does not tell.
    """

    kind: str
    name: str | None
    context: str
    question: str
    options: list[str]
    right: int | None


def question_of(value: Mapping[str, Any]) -> Question:
    """The question of a row; its fields tell which dataset it is of.

    Raises:
        MmdoraError: it is a row of none of them, or its answer is none of its options.
        KeyError: a field is missing.
    """
    for field, read in READERS.items():
        if field in value:
            return read(value)
    raise MmdoraError(
        "a row of none of the known forms: BoolQ, PIQA, SIQA, HellaSwag, WinoGrande, ARC, OpenBookQA, or LLM-Adapters'"
    )


def _boolq(value: Mapping[str, Any]) -> Question:
    answer = value.get("answer", value.get("label"))
    if answer is not None and not isinstance(answer, bool) and answer not in (0, 1):
        raise MmdoraError(f"the answer {answer!r} is neither true nor false")
    right = None if answer is None else 0 if answer else 1
    return Question(BOOLQ, None, value["passage"], f"{value['question']}?", list(TRUE_OR_FALSE), right)


def _piqa(value: Mapping[str, Any]) -> Question:
    right = _place(value.get("label"), ("0", "1"))
    return Question(PIQA, value.get("id"), "", value["goal"], [value["sol1"], value["sol2"]], right)


def _siqa(value: Mapping[str, Any]) -> Question:
    options = [value["answerA"], value["answerB"], value["answerC"]]
    named = value.get("label") or value.get("correct")
    right = _place(named, ("A", "B", "C") if named in ("A", "B", "C") else ("1", "2", "3"))
    return Question(SIQA, None, value["context"], value["question"], options, right)


def _hellaswag(value: Mapping[str, Any]) -> Question:
    text = f"{value['activity_label']}: {value['ctx']}"
    return Question(HELLASWAG, None, "", text, value["endings"], _place(value.get("label"), ("0", "1", "2", "3")))


def _winogrande(value: Mapping[str, Any]) -> Question:
    if value["sentence"].count("_") != 1:
        raise MmdoraError("the sentence needs one blank, written _")
    options = [value["option1"], value["option2"]]
    return Question(
        WINOGRANDE, value.get("qID"), "", value["sentence"], options, _place(value.get("answer"), ("1", "2"))
    )


def _science(value: Mapping[str, Any]) -> Question:
    """ARC and OpenBookQA: official files nest the options below the question, `datasets` gives two lists."""
    asked, choices = value.get("question", value.get("question_stem")), value.get("choices")
    if isinstance(asked, Mapping):
        asked, choices = asked["stem"], asked["choices"]
    if isinstance(choices, Mapping):
        texts, labels = list(choices["text"]), list(choices["label"])
    else:
        texts, labels = [each["text"] for each in choices or ()], [each["label"] for each in choices or ()]
    kind = OPENBOOKQA if "question_stem" in value else ARC
    return Question(kind, value.get("id"), "", str(asked), texts, _place(value.get("answerKey"), labels))


READERS = {
    **{"goal": _piqa, "answerA": _siqa, "endings": _hellaswag, "option1": _winogrande},
    **{"question_stem": _science, "answerKey": _science, "choices": _science, "passage": _boolq},
}
"""A field that only rows of one form have -> how its question is read."""


def _place(named: Any, labels: Sequence[str]) -> int | None:
    """The index of the label that a row names; None for a row that names none, as those of test sets do."""
    if named is None or str(named).strip() in ("", "-1"):
        return None
    if str(named).strip() not in labels:
        raise MmdoraError(f"the answer {named!r} is none of {', '.join(labels)}")
    return list(labels).index(str(named).strip())


def worded(question: Question) -> tuple[str, str | None]:
    """The question as LLM-Adapters ask it, and the label of its answer, such as `answer2`; None if that is not known.

    BoolQ's passage is left out there.
    """
    kind, right = question.kind, question.right
    if kind == BOOLQ:
        asked = f"Please answer the following question with true or false, question: {question.question}"
        return f"{asked}\n\nAnswer format: true/false", None if right is None else TRUE_OR_FALSE[right]
    word = WORDS[kind]
    labels = [f"{word}{number}" for number in range(1, len(question.options) + 1)]
    listed = [f"{label.capitalize()}: {text}" for label, text in zip(labels, question.options, strict=True)]
    shown = ("\n\n" if kind == PIQA else " ").join(listed)
    between = " " if kind == WINOGRANDE else "\n\n"
    text = f"{question.context} {question.question}".strip()
    asked = f"{TASKS.get(kind, TASKS[ARC])}: {text}\n\n{shown}{between}Answer format: {'/'.join(labels)}"
    return asked, None if right is None else labels[right]
