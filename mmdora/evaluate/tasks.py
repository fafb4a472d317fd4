"""The tasks of `mmdora eval --task`: how each is asked, scored and submitted. This module imports no torch.

Prompts and lengths are those of LLaVA-1.5's published evaluation, for the tasks that it has. The sentences are in
docs/Evaluation.md (https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md) and in its question files;
lmms-eval repeats their wording for VizWiz, TextVQA and ScienceQA (post_prompt and utils.py of
lmms_eval/tasks/{vizwiz_vqa,textvqa,scienceqa}). An answer has at most 128 new tokens (llava/eval/model_vqa_loader.py),
or 1,024 for multiple choice (model_vqa_science.py, model_vqa_mmbench.py); decoding is greedy, and an answer ends with
its end-of-turn token. VL-BART is asked by its own prompts instead.

The commonsense tasks come in three forms: by letter, as multiple choice on pictures; by likelihood, as base models are
compared (`evaluate.options`); and as the DoRA paper trains and scores LLaMA (`data_prep.commonsense`), in answers of at
most 32 new tokens (LLM-Adapters, commonsense_evaluate.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmdora.data_prep import (
    boolq,
    coco_captions,
    folder,
    gqa,
    hellaswag,
    how2qa,
    mmbench,
    nlvr2,
    okvqa,
    pope,
    scienceqa,
    textvqa,
    tvc,
    tvqa,
    vizwiz,
    vqav2,
    winogrande,
    yc2c,
)
from mmdora.errors import MmdoraError
from mmdora.evaluate import options
from mmdora.evaluate.options import Options
from mmdora.prepare.dataset import Dataset, ResultFile

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
TRUE_OR_FALSE = "\nIs the statement true or false?"  # These words are ours: LLaVA-1.5 was not evaluated on NLVR2.

LIKELIHOOD, PER_CHARACTER, COMMONSENSE = "likelihood", "likelihood-per-character", "commonsense"
PUBLISHED = ("test", "dev", "valid", "val")
"""The splits of the commonsense tasks: LLM-Adapters call test what the owners of some datasets call dev or val."""
COMMONSENSE_TASKS = {
    **{"boolq": "BoolQ", "piqa": "PIQA", "siqa": "SIQA", "hellaswag": "HellaSwag", "winogrande": "WinoGrande"},
    **{"arc-easy": "ARC-e", "arc-challenge": "ARC-c", "openbookqa": "OBQA"},
}
"""Name in `commonsense-NAME` -> its column in table 1 of the DoRA paper, in the order of that table."""

Ask = Callable[[Mapping[str, Any], str], str]


@dataclass(frozen=True)
class Task:
    """One task of `mmdora eval`.

    Attributes:
        name: name of the task.
        scorer: name of its scorer in `scoring.scorers.SCORERS`.
        about: one line for `mmdora eval --list`.
        ask: function (record, text of its question) -> text that the model is asked.
        max_new_tokens: the most tokens of an answer.
        dataset: dataset whose `results` writes the official result file; None if there is no such file.
        splits: splits to evaluate, best first; the first that exists in a prepared folder is taken. `a+b` stands for
            two splits that are evaluated together.
        prefix: name of the task in VL-BART's prompts, if VL-BART was trained on it.
        answers: the only answers that VL-BART may give; it gives the one that is most likely at its first step.
        options: gives the options that are compared by likelihood; nothing is generated then.
    """

    name: str
    scorer: str
    about: str
    ask: Ask
    max_new_tokens: int = 128
    dataset: Dataset | None = None
    splits: tuple[str, ...] = ("test",)
    prefix: str | None = None
    answers: tuple[str, ...] = ()
    options: Options | None = None

    @property
    def results(self) -> ResultFile | None:
        """The writer of the file for the task's official scorer or server; None if there is no such file."""
        return self.dataset.results if self.dataset else None


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
    # If there is a hint, `question` begins with it, as `mmdora prep` wrote it.
    return f"Context: {question}{LETTER}" if hint else question + LETTER


_TASKS = (
    Task("exact", "exact", "any records with short answers", _plain, 32),
    Task("boxes", "boxes", "any records with meta.boxes_in: IoU of the first box", _plain, 64),
    Task("caption", "caption", "any records with meta.references", _plain, 64),
    Task("choice", "choice", "any records with meta.choices, answered by a letter", _then(LETTER), 1024),
    Task("likelihood", LIKELIHOOD, "any records with meta.choices, the most likely text", _plain,
         options=options.of_choices),
    Task("likelihood-per-character", PER_CHARACTER, "the same, by likelihood per character", _plain,
         options=options.of_choices),
    # The tasks of public datasets follow.
    Task("vqav2", "vqav2", "VQA v2", _then(SHORT), 128, vqav2.DATASET, splits=("test-dev", "test", "val"),
         prefix="vqa"),
    Task("okvqa", "okvqa", "OK-VQA", _then(SHORT), 128, okvqa.DATASET, splits=("val", "test"), prefix="vqa"),
    Task("gqa", "gqa", "GQA", _then(SHORT), 128, gqa.DATASET, splits=("testdev", "val", "test"), prefix="gqa"),
    Task("vizwiz", "vizwiz", "VizWiz-VQA", _then(UNANSWERABLE, SHORT), 128, vizwiz.DATASET, splits=("test", "val")),
    Task("scienceqa", "scienceqa", "ScienceQA", _science, 1024, scienceqa.DATASET),
    Task("textvqa", "textvqa", "TextVQA, with the image's OCR tokens", _with_ocr, 128, textvqa.DATASET,
         splits=("val",)),
    Task("textvqa-plain", "textvqa", "TextVQA, the question alone", _then(SHORT), 128, textvqa.DATASET,
         splits=("val",)),
    Task("pope", "pope", "POPE", _then(SHORT), 128, pope.DATASET, ("random+popular+adversarial",)),
    Task("mmbench", "mmbench", "MMBench, CircularEval", _then(LETTER), 1024, mmbench.DATASET, ("dev", "test")),
    Task("mmbench-plain", "mmbench-plain", "MMBench, each question once", _then(LETTER), 1024, mmbench.DATASET,
         ("dev", "test")),
    Task("refcoco", "boxes", "RefCOCO, RefCOCO+, RefCOCOg: where something is", _plain, 64,
         splits=("val", "testA", "testB", "test")),
    Task("nlvr2", "nlvr2", "NLVR2, two images", _then(TRUE_OR_FALSE, SHORT), 128, nlvr2.DATASET, ("test", "dev"),
         "nlvr", ("true", "false")),
    Task("coco-captions", "caption", "COCO captions", _plain, 128, coco_captions.DATASET, splits=("test", "val"),
         prefix="caption"),
    Task("tvqa", "choice", "TVQA", _then(LETTER), 128, tvqa.DATASET, splits=("test", "val"), prefix="tvqa"),
    Task("how2qa", "choice", "How2QA", _then(LETTER), 128, how2qa.DATASET, splits=("test", "val"), prefix="how2qa"),
    Task("tvc", "caption", "TVC", _plain, 128, tvc.DATASET, ("test", "val"), "tvc"),
    Task("yc2c", "caption", "YC2C", _plain, 128, yc2c.DATASET, ("test", "val"), "yc2c"),
    Task("boolq", "exact", "BoolQ, text only", _then(SHORT), 32, boolq.DATASET, ("dev", "val", "test")),
    Task("hellaswag", "choice", "HellaSwag, text only", _then(LETTER), 32, hellaswag.DATASET, ("val", "test")),
    Task("winogrande", "choice", "WinoGrande, text only", _then(LETTER), 32, winogrande.DATASET, ("dev", "val",
         "test")),
    Task("piqa", "choice", "PIQA, text only", _then(LETTER), 32, splits=("valid", "val", "dev", "test")),
    Task("siqa", "choice", "Social IQa, text only", _then(LETTER), 32, splits=("dev", "val", "test")),
    Task("arc", "choice", "ARC, easy or challenge, text only", _then(LETTER), 32),
    Task("openbookqa", "choice", "OpenBookQA, text only", _then(LETTER), 32),
    Task("boolq-likelihood", LIKELIHOOD, "BoolQ", _plain, dataset=boolq.DATASET, splits=("dev", "val", "test"),
         options=options.boolq),
    Task("piqa-likelihood", PER_CHARACTER, "PIQA", _plain, splits=("valid", "val", "dev", "test"),
         options=options.answered),
    Task("siqa-likelihood", LIKELIHOOD, "Social IQa", _plain, splits=("dev", "val", "test"), options=options.siqa),
    Task("hellaswag-likelihood", PER_CHARACTER, "HellaSwag", _plain, dataset=hellaswag.DATASET,
         splits=("val", "test"), options=options.hellaswag),
    Task("winogrande-likelihood", LIKELIHOOD, "WinoGrande, the rest of the sentence", _plain,
         dataset=winogrande.DATASET, splits=("dev", "val", "test"), options=options.winogrande),
    Task("arc-likelihood", PER_CHARACTER, "ARC", _plain, options=options.answered),
    Task("openbookqa-likelihood", PER_CHARACTER, "OpenBookQA", _plain, options=options.openbookqa),
    Task("commonsense", COMMONSENSE, "commonsense tasks as the DoRA paper words them", _plain, 32,
         splits=PUBLISHED),
    *(Task(f"commonsense-{name}", COMMONSENSE, f"{heading} in the same words", _plain, 32, splits=PUBLISHED)
      for name, heading in COMMONSENSE_TASKS.items()),
    Task("folder", "exact", "your own folder", _plain, 32, folder.DATASET, ("test", "val", "dev", "train")),
    # The pictures of the following tasks are drawn by this package or come with another one. Their questions are asked
    # in the words of the records.
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
    Task("openmoji", "exact", "OpenMoji's pictures: kind, number and colour", _plain, 32, prefix="vqa"),
    Task("digits", "exact", "handwritten digits (scikit-learn's scans)", _plain, 32, prefix="vqa"),
)  # fmt: skip
TASKS: Mapping[str, Task] = {task.name: task for task in _TASKS}


def task_of(name: str) -> Task:
    """The task with this name.

    Raises:
        MmdoraError: if there is none; the message suggests the nearest name.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise MmdoraError(f"no task {name!r}{hint} (mmdora eval --list shows them)")
    return TASKS[name]
