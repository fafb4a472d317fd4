"""What is compared where a model answers by likelihood: the text before each option, and the option. No torch here.

The forms are those of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness, lm_eval/tasks/boolq,
piqa, siqa, hellaswag/utils.py, winogrande/preprocess_winogrande.py, arc, openbookqa), by which base models are compared
without a chat template and without examples. A blank stands between text and option.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.metrics import question_text

Option = tuple[str | None, str]
"""The text before an option and the option itself; None stands for the question as the model's family renders it."""
Options = Callable[[Mapping[str, Any]], list[Option]]
"""A function record -> its options, in the order of `meta.choices` (of BoolQ: no, yes)."""


def of_choices(record: Mapping[str, Any]) -> list[Option]:
    """The texts of `meta.choices`, each as an answer to the question in the model's own form."""
    return [(None, text) for text in _meta(record, "choices")]


def boolq(record: Mapping[str, Any]) -> list[Option]:
    passage, _, question = question_text(record).rpartition("\n")
    return [(f"{passage}\nQuestion: {question}\nAnswer:", f" {answer}") for answer in ("no", "yes")]


def answered(record: Mapping[str, Any]) -> list[Option]:
    """PIQA and ARC."""
    return [(f"Question: {_meta(record, 'question')}\nAnswer:", f" {text}") for text in _meta(record, "choices")]


def siqa(record: Mapping[str, Any]) -> list[Option]:
    before = f"Q: {_meta(record, 'context')} {_meta(record, 'question')}\nA:"
    return [(before, f" {text}") for text in _meta(record, "choices")]


def hellaswag(record: Mapping[str, Any]) -> list[Option]:
    ends = _meta(record, "ctx_b").capitalize()
    before = _without_marks(f"{_meta(record, 'activity_label')}: {_meta(record, 'ctx_a')} {ends}")
    return [(before, f" {_without_marks(text)}") for text in _meta(record, "choices")]


def winogrande(record: Mapping[str, Any]) -> list[Option]:
    """The rest of the sentence, which is the same, behind each of the two names (partial evaluation)."""
    before, after = _meta(record, "sentence").split("_")
    return [(before + name, f" {after.strip()}") for name in _meta(record, "choices")]


def openbookqa(record: Mapping[str, Any]) -> list[Option]:
    return [(_meta(record, "question"), f" {text}") for text in _meta(record, "choices")]


def _without_marks(text: str) -> str:
    """A text without the marks in brackets that WikiHow's articles left in HellaSwag."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _meta(record: Mapping[str, Any], name: str) -> Any:
    value = record["meta"].get(name)
    if value is None:
        raise MmdoraError(
            f"record {record['id']}: no 'meta.{name}', which its likelihood is asked by; prepare the records with this "
            "version's `mmdora prep`"
        )
    return value
