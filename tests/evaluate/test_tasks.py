"""The task registry: what is asked, word for word, and where its records come from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmdora.data_prep.table import DATASETS
from mmdora.errors import MmdoraError
from mmdora.evaluate.output import write_submission
from mmdora.evaluate.scoring.metrics import question_text
from mmdora.evaluate.scoring.scorers import SCORERS
from mmdora.evaluate.source import find, first
from mmdora.evaluate.tasks import TASKS, task_of
from mmdora.outputs.written import Written
from mmdora.prepare.record import asked, choice
from mmdora.records.reader import write_records

OCR = {"ocr_tokens": ["DAKOTA", "DIGITAL"]}
OPTIONS = ["a stone", "a magnet"]

# Word for word what LLaVA-1.5's question files hold (a line of llava_textvqa_val_v051_ocr.jsonl is quoted in
# https://github.com/ShawnTan86/TokenCarve/issues/2), and lmms-eval's prompts for LLaVA.
PROMPTS = {
    "vqav2": "What is it?\nAnswer the question using a single word or phrase.",
    "gqa": "What is it?\nAnswer the question using a single word or phrase.",
    "pope": "What is it?\nAnswer the question using a single word or phrase.",
    "vizwiz": "What is it?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase.",
    "mmbench": "What is it?\nAnswer with the option's letter from the given choices directly.",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_questions_are_asked_as_llava_asked_them(name):
    assert TASKS[name].ask(asked("1", [], "What is it?", "tea"), "What is it?") == PROMPTS[name]


def test_textvqa_shows_the_ocr_tokens():
    record = asked("1", [], "what is the brand of this camera?", "dakota", **OCR)
    expected = (
        "What is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL\n"
        "Answer the question using a single word or phrase."
    )
    assert TASKS["textvqa"].ask(record, "what is the brand of this camera?") == expected
    with pytest.raises(MmdoraError, match=r"record 2: no 'meta.ocr_tokens'.*textvqa-plain"):
        TASKS["textvqa"].ask(asked("2", [], "who?", "me"), "who?")


def test_scienceqa_names_the_hint_a_context():
    record = choice("1", [], "Which sticks?", OPTIONS, 1, context="It is iron.", hint="It is iron.")
    question = question_text(record)
    expected = "Context: It is iron.\nWhich sticks?\nA. a stone\nB. a magnet\nAnswer with the option's letter from the "
    assert TASKS["scienceqa"].ask(record, question) == expected + "given choices directly."
    bare = choice("2", [], "Which sticks?", OPTIONS, 1)
    assert TASKS["scienceqa"].ask(bare, "Which sticks?").startswith("Which sticks?")


def test_every_task_has_a_scorer_and_every_dataset_is_known():
    assert {task.scorer for task in TASKS.values()} == set(SCORERS)
    datasets = [task.dataset for task in TASKS.values() if task.dataset is not None]
    assert all(dataset is DATASETS[dataset.name] and dataset.results is not None for dataset in datasets)
    with_results = {name for name, dataset in DATASETS.items() if dataset.results is not None}
    assert with_results == {dataset.name for dataset in datasets}, "a result file that no task writes"
    assert all(name == task.name for name, task in TASKS.items())


def test_an_unknown_task_is_named_with_its_neighbour():
    with pytest.raises(MmdoraError, match="no task 'vqa2'; did you mean 'vqav2'"):
        task_of("vqa2")


# --- where records come from


def folder(path: Path, name: str, *splits: str, **card: str) -> Path:
    """A folder as `mmdora prep` leaves it, a record a split."""
    entries = {}
    for split in splits:
        write_records(path / f"{split}.jsonl", [asked(f"{split}-1", [], "Is it?", "yes", type=split)])
        entries[split] = {"file": f"{split}.jsonl", "images_root": None, "packed": False}
    (path / "dataset_card.json").write_text(json.dumps({"name": name, "splits": entries} | card))
    return path


def test_the_card_names_task_and_split(tmp_path):
    data = folder(tmp_path / "pope", "pope", "random", "popular", "adversarial")
    source = find(data)
    assert (source.task.name, source.split, len(source.records)) == ("pope", "random+popular+adversarial", 3)
    assert source.name == "pope"
    part = find(data, split="popular")
    assert (part.records[0]["id"], part.name) == ("popular-1", "pope-popular")
    assert find(data, "exact", split="random").task.name == "exact"
    assert find(folder(tmp_path / "b", "mine", "test", task="scenes-count")).task.name == "scenes-count"
    assert find(folder(tmp_path / "c", "mine", "odd")).task.name == "exact", "any other card, the only split"
    with pytest.raises(MmdoraError, match="no split test; there are one, two"):
        find(folder(tmp_path / "d", "mine", "one", "two"))
    with pytest.raises(MmdoraError, match="no split val; there are random"):
        find(data, split="val")


def root_of(source: Any) -> Path:
    return source.records.root


def test_a_file_of_a_folder_takes_its_root_and_task_from_the_card(tmp_path):
    data = folder(tmp_path / "a", "gqa", "val")
    card = json.loads((data / "dataset_card.json").read_text())
    (tmp_path / "pictures").mkdir()
    card["splits"]["val"]["images_root"] = str(tmp_path / "pictures")
    (data / "dataset_card.json").write_text(json.dumps(card))
    source = find(data / "val.jsonl")
    assert (source.task.name, root_of(source), source.split) == ("gqa", tmp_path / "pictures", "val")
    assert root_of(find(data / "val.jsonl", images=data)) == data
    with pytest.raises(MmdoraError, match="is a file; name its folder"):
        find(data / "val.jsonl", split="val")


def test_a_folder_without_a_card_and_a_file_without_one(tmp_path):
    data = folder(tmp_path / "a", "gqa", "val")
    (data / "dataset_card.json").unlink()
    with pytest.raises(MmdoraError, match=r"no dataset_card\.json"):
        find(data)
    source = find(data / "val.jsonl")
    assert (source.task.name, root_of(source)) == ("exact", data)
    shutil.copy(data / "val.jsonl", data / "more.jsonl")
    assert len(first(source.records, 5)) == len(first(source.records, None)) == 1


# --- official result files


def test_result_files_hold_what_the_scorer_reads(tmp_path):
    record = asked("7", [], "Who?", "me", question_id=7, answers=["me"] * 10)
    rows = [{"id": "7", "prediction": "The  two dogs.", "answer": "me", "meta": record["meta"]}]
    path = write_submission(Written(tmp_path), TASKS["vqav2"], [record], rows)
    assert path and json.loads(path.read_text()) == [{"question_id": 7, "answer": "2 dogs"}]
    science = choice("1", [], "Which?", OPTIONS, 1, pid="12")
    rows = [{"id": "1", "prediction": "B. a magnet", "answer": "B", "meta": science["meta"]}]
    path = write_submission(Written(tmp_path), TASKS["scienceqa"], [science], rows)
    assert path and json.loads(path.read_text()) == {"results": {"12": 1}}
    assert write_submission(Written(tmp_path), TASKS["easy-vqa"], [record], rows) is None
    with pytest.raises(MmdoraError, match=r"no 'meta.question_id'.*mmdora prep vqav2"):
        write_submission(Written(tmp_path), TASKS["vqav2"], [science], rows)
