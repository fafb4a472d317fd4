"""Scores VQAv2 and similar datasets by soft accuracy: how many people gave the same answer (Antol et al. 2015).

The three scorers differ in which texts they clean before they compare them:

- VQAv2 and OK-VQA (GT-Vision-Lab/VQA, vqaEval.py, master): answers and prediction are cleaned only if the ten answers
  differ; otherwise only their case is ignored.
- VizWiz (its API, vqaEval.py): the prediction is always cleaned, the answers never are.
- TextVQA (MMF's EvalAIAnswerProcessor and TextVQAAccuracyEvaluator, which LLaVA uses): all are cleaned, after commas
  and question marks are removed and `'s` is split off.

Each person's answer is left out in turn, and the prediction is compared with the other nine. The official code of VQAv2
finds these nine by comparing annotations, which works because each has an `answer_id`. VizWiz's annotations have none,
and its code leaves out answers by their position, as this module does for all three.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from mmdora.errors import MmdoraError

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = ("a", "an", "the")
# The official table restores the apostrophe in these words if exactly one apostrophe is missing.
CONTRACTED = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in CONTRACTED.split() for i, mark in enumerate(word) if mark == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # This entry is the wrong way round in the official table too.
MOST_PERIODS = 32
"""The most periods that are removed: the official code passes re.UNICODE, which is 32, as the count of `sub`."""


@lru_cache(2**16)  # People give the same answers again and again.
def clean(text: str) -> str:
    """The text after the official processPunctuation and then processDigitArticle."""
    digits = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        cleaned = cleaned.replace(mark, "" if digits or f"{mark} " in text or f" {mark}" in text else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned, count=MOST_PERIODS)
    words = (NUMBERS.get(word, word) for word in cleaned.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def evalai(text: str) -> str:
    """The text after TextVQA's answer processor, which LLaVA also applies to its answers to VQAv2 and VizWiz."""
    return clean(_flat(text.lower().replace(",", "").replace("?", "").replace("'s", " 's")))


def _flat(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def agreement(prediction: str, answers: Sequence[str]) -> float:
    """The mean over the annotators of min(1, equal answers among the others / 3).

    Raises:
        MmdoraError: there are fewer than two answers.
    """
    n = len(answers)
    if n < 2:
        raise MmdoraError(f"soft accuracy needs the answers of several people; found {list(answers)!r}")
    same = list(answers).count(prediction)
    return (same * min(1.0, (same - 1) / 3) + (n - same) * min(1.0, same / 3)) / n


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQAv2's score of one answer, in [0, 1]."""
    prediction, answers = _flat(prediction), [_flat(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = clean(prediction), [clean(answer) for answer in answers]
    return agreement(prediction.lower(), [answer.lower() for answer in answers])


def vizwiz_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VizWiz's score of one answer, in [0, 1].

    Some copies of the official file have typographic apostrophes in its contractions; here they are plain ones.
    """
    return agreement(clean(_flat(prediction)), answers)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """TextVQA's score of one answer, in [0, 1]."""
    return agreement(evalai(prediction), [evalai(answer) for answer in answers])
