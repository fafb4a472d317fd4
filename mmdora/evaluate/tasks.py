"""What `mmdora eval --task` knows: how each task is asked, scored and handed in. No torch.

Prompts and lengths are those of LLaVA-1.5's published evaluation where it has the task: the sentences of
docs/Evaluation.md (https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md) and of its question
files, whose wording for VizWiz, TextVQA and ScienceQA lmms-eval repeats (post_prompt and utils.py of
lmms_eval/tasks/{vizwiz_vqa,textvqa,scienceqa}); at most 128 new tokens (llava/eval/model_vqa_loader.py),
1,024 for multiple choice (model_vqa_science.py, model_vqa_mmbench.py); greedy; an answer ends with its
end-of-turn token. VL-BART is asked by its own prompts instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmdora.errors import MmdoraError

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
TRUE_OR_FALSE = "\nIs the statement true or false?"  # LLaVA-1.5 was not evaluated on NLVR2; these words are ours

Ask = Callable[[Mapping[str, Any], str], str]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        scorer: its name in `scoring.SCORERS`.
        about: one line, for the list.
        ask: a record and the text of its question -> the text that is asked.
        max_new_tokens: an answer's longest.
        dataset: module of `mmdora.data_prep` whose `write_results` writes the official result file.
        file: name of that file.
        splits: of a prepared folder, the first that is there; `a+b` are evaluated together.
        prefix: VL-BART's name of the task; it is then asked by that prompt.
        answers: the only ones VL-BART may give; it reads them off its first step.
    """

    name: str
    scorer: str
    about: str
    ask: Ask
    max_new_tokens: int = 128
    dataset: str | None = None
    file: str = "results.json"
    splits: tuple[str, ...] = ("test",)
    prefix: str | None = None
    answers: tuple[str, ...] = ()


def _plain(record: Mapping[str, Any], question: str) -> str:
    return question


def _then(*sentences: str) -> Ask:
    return lambda record, question: question + "".join(sentences)


def _with_ocr(record: Mapping[str, Any], question: str) -> str:
    """LLaVA-1.5's TextVQA question: in sentence case, with the OCR tokens of the image."""
    tokens = record["meta"].get("ocr_tokens")
    if tokens is None:
        raise MmdoraError(
            f"record {record['id']}: no 'meta.ocr_tokens', which LLaVA-1.5's prompt shows; name TextVQA_Rosetta_OCR "
            "in `mmdora prep textvqa --in`, or take the task textvqa-plain"
        )
    return f"{question.capitalize()}\nReference OCR token: {', '.join(tokens)}{SHORT}"


def _science(record: Mapping[str, Any], question: str) -> str:
    """LLaVA-1.5's ScienceQA question: the hint as context, the question, the options under letters."""
    hint = record["meta"].get("hint")
    return f"Context: {question}{LETTER}" if hint else question + LETTER  # prep writes the hint before the question


_TASKS = (
    Task("exact", "exact", "any records with short answers", _plain, 32),
    Task("caption", "caption", "any records with meta.references", _plain, 64),
    Task("choice", "choice", "any records with meta.choices, answered by a letter", _then(LETTER), 1024),
    # the public datasets
    Task("vqav2", "vqav2", "VQA v2", _then(SHORT), 128, "vqav2", splits=("test-dev", "test", "val"), prefix="vqa"),
    Task("okvqa", "okvqa", "OK-VQA", _then(SHORT), 128, "okvqa", splits=("val", "test"), prefix="vqa"),
    Task("gqa", "gqa", "GQA", _then(SHORT), 128, "gqa", splits=("testdev", "val", "test"), prefix="gqa"),
    Task("vizwiz", "vizwiz", "VizWiz-VQA", _then(UNANSWERABLE, SHORT), 128, "vizwiz", splits=("test", "val")),
    Task("scienceqa", "scienceqa", "ScienceQA", _science, 1024, "scienceqa"),
    Task("textvqa", "textvqa", "TextVQA, with the image's OCR tokens", _with_ocr, 128, "textvqa", splits=("val",)),
    Task("textvqa-plain", "textvqa", "TextVQA, the question alone", _then(SHORT), 128, "textvqa", splits=("val",)),
    Task("pope", "pope", "POPE", _then(SHORT), 128, "pope", "results.jsonl", ("random+popular+adversarial",)),
    Task("mmbench", "mmbench", "MMBench, CircularEval", _then(LETTER), 1024, "mmbench", "results.xlsx",
         ("dev", "test")),
    Task("mmbench-plain", "mmbench-plain", "MMBench, each question once", _then(LETTER), 1024, "mmbench",
         "results.xlsx", ("dev", "test")),
    Task("nlvr2", "nlvr2", "NLVR2, two images", _then(TRUE_OR_FALSE, SHORT), 128, "nlvr2", "results.csv",
         ("test", "dev"), "nlvr", ("true", "false")),
    Task("coco-captions", "caption", "COCO captions", _plain, 128, "coco_captions", splits=("test", "val"),
         prefix="caption"),
    Task("tvqa", "choice", "TVQA", _then(LETTER), 128, "tvqa", splits=("test", "val"), prefix="tvqa"),
    Task("how2qa", "choice", "How2QA", _then(LETTER), 128, "how2qa", splits=("test", "val"), prefix="how2qa"),
    Task("tvc", "caption", "TVC", _plain, 128, "tvc", "results.jsonl", ("test", "val"), "tvc"),
    Task("yc2c", "caption", "YC2C", _plain, 128, "yc2c", "results.jsonl", ("test", "val"), "yc2c"),
    Task("boolq", "exact", "BoolQ, text only", _then(SHORT), 32, "boolq", "results.jsonl", ("dev", "val", "test")),
    Task("hellaswag", "choice", "HellaSwag, text only", _then(LETTER), 32, "hellaswag", "results.csv", ("val", "test")),
    Task("winogrande", "choice", "WinoGrande, text only", _then(LETTER), 32, "winogrande", "predictions.lst",
         ("dev", "val", "test")),
    Task("folder", "exact", "your own folder", _plain, 32, "folder", "results.jsonl", ("test", "val", "dev", "train")),
    # what this package draws or carries, asked as it is prepared
    Task("easy-vqa", "exact", "easy-VQA", _plain, 32, prefix="vqa"),
    Task("scenes", "exact", "drawn scenes, all kinds of short questions", _plain, 32, prefix="vqa"),
    Task("scenes-caption", "caption", "drawn scenes: captions", _plain, 64, prefix="caption"),
    Task("scenes-caption-exact", "exact", "drawn scenes: captions, word for word", _plain, 64, prefix="caption"),
    Task("scenes-count", "exact", "drawn scenes: how many", _plain, 32, prefix="vqa"),
    Task("scenes-relation", "exact", "drawn scenes: where things stand", _plain, 32, prefix="vqa"),
    Task("scenes-pope", "pope", "drawn scenes: is it there, in POPE's form", _plain, 32, prefix="vqa"),
    Task("scenes-nlvr2", "nlvr2", "drawn scenes: a statement on two pictures, as in NLVR2", _plain, 32, prefix="nlvr",
         answers=("true", "false")),
    Task("scenes-ocr", "exact", "drawn words, to be read", _plain, 32, prefix="vqa"),
    Task("scenes-clips", "exact", "clips of moving shapes", _plain, 32),
    Task("scenes-clip-features", "exact", "the same clips as features, for VL-BART", _plain, 32, prefix="tvqa"),
    Task("digits", "exact", "handwritten digits (scikit-learn's scans)", _plain, 32, prefix="vqa"),
)  # fmt: skip
TASKS: Mapping[str, Task] = {task.name: task for task in _TASKS}


def task_of(name: str) -> Task:
    """The task of a name.

    Raises:
        MmdoraError: with the nearest name, if there is none.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise MmdoraError(f"no task {name!r}{hint} (mmdora eval --list shows them)")
    return TASKS[name]
