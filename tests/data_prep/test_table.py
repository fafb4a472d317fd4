"""Every dataset's object: its texts, its command, a record of an example row, and its result file."""

import base64
import io
import pkgutil
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mmdora.data_prep
from mmdora.cli.prep import datasets_app
from mmdora.data_prep.table import DATASETS
from mmdora.errors import MmdoraError
from mmdora.prepare.dataset import Dataset, OfficialFiles, Origin
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.rows import by_ending
from mmdora.prepare.run import prepare
from mmdora.records.record import Record, check_record

OWN_DATA = {"folder", "llava", "messages", "sharegpt"}
"""Layouts that people use for data of their own, too."""


def _png() -> str:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


QUESTION = {"question_id": 1, "image_id": 42, "question": "What is it?"}
CLIP = {"qid": 7, "q": "Who?", "answer_idx": 1, "vid_name": "clip", "ts": "1-2"}
CLIP |= {f"a{number}": str(number) for number in range(5)}
MOMENT = {"vid_name": "clip", "clip_id": 3, "ts": [1, 2], "descs": [{"desc": "A dog.", "desc_id": 9}]}
EXAMPLES: dict[str, Any] = {
    "arc": {"id": "1", "question": "Which?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    "commonsense": {"instruction": "Is it?", "input": "", "output": "the correct answer is true", "answer": "true"},
    "openbookqa": {"id": "1", "question_stem": "It is", "choices": {"text": ["a", "b"], "label": ["A", "B"]},
                   "answerKey": "B"},
    "piqa": {"goal": "How?", "sol1": "So", "sol2": "Not so", "label": 1},
    "siqa": {"context": "He left.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "2"},
    "boolq": {"question": "is it", "passage": "It is.", "answer": True, "title": "it"},
    "coco-captions": ({"id": 42, "file_name": "a.jpg"}, [{"id": 1, "caption": "A dog."}]),
    "folder": {"image": "a.jpg", "question": "What?", "answer": "a dog"},
    "gqa": ("05", {"imageId": "n1", "question": "Is it dark?", "answer": "no", "isBalanced": True}, None),
    "hellaswag": {"ind": 1, "activity_label": "Skiing", "ctx": "He", "endings": list("abcd"), "label": 2,
                  "split": "val", "split_type": "indomain", "source_id": "x"},
    "how2qa": (CLIP, "spoken"),
    "llava": {"id": "1", "image": "a.jpg",
              "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A dog."}]},
    "messages": {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A dog."}],
                 "images": ["a.jpg"]},
    "mmbench": {"index": "241", "question": "Which?", "hint": "nan", "A": "a", "B": "b", "answer": "B",
                "category": "ocr", "image": _png(), "l2-category": "perception"},
    "nlvr2": {"sentence": "Two dogs.", "label": "True", "identifier": "dev-1-0-0"},
    "okvqa": ("val2014", QUESTION, {"question_type": "one", "answers": [{"answer": "dog", "raw_answer": "dogs"}]}),
    "pope": {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"},
    "refcoco": {"image": "data/train2014/a.jpg", "sent": "left dog", "bbox": [1, 2, 30.5, 40], "width": 64,
                "height": 48},
    "scienceqa": ("1", {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "", "image": None,
                        "grade": "grade2", "subject": "language", "split": "test"}),
    "sharegpt": {"conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A dog."}],
                 "images": ["a.jpg"]},
    "textvqa": (QUESTION | {"image_id": "a", "answers": ["dog"] * 10}, {"ocr_tokens": ["DOG"]}),
    "tvc": (MOMENT, None),
    "tvqa": (CLIP | {"show_name": "House"}, "spoken"),
    "vizwiz": {"image": "a.jpg", "question": "What?", "answers": [{"answer": "dog", "answer_confidence": "yes"}]},
    "vqav2": ("val2014", QUESTION, {"multiple_choice_answer": "dog", "answers": [{"answer": "dog"}]}),
    "winogrande": {"qID": "1", "sentence": "The _ fell.", "option1": "cup", "option2": "table", "answer": "1"},
    "yc2c": (MOMENT, None),
}  # fmt: skip
"""A row of each dataset as its `rows` gives it."""


def test_every_module_is_in_the_table():
    modules = {module.name.replace("_", "-") for module in pkgutil.iter_modules(mmdora.data_prep.__path__)}
    assert modules - {"table"} == set(DATASETS)
    assert all(name == dataset.name for name, dataset in DATASETS.items())


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
def test_an_object_says_all_about_its_dataset(dataset: Dataset):
    assert re.fullmatch(r"[^.\n]{10,60}", dataset.summary), "one line of `mmdora prep --help`"
    assert dataset.details.endswith(".")
    origin = dataset.origin
    assert re.search(r"CC BY|MIT|Apache|not stated", origin.licence) or (
        dataset.name in OWN_DATA and origin.licence in ("yours", "that of the data at hand")
    )
    assert all(isinstance(note, str) and note for note in origin.unverified)
    assert dataset.results is None or re.fullmatch(r"\w+\.\w+", dataset.results.name)
    tokens = ["prep", dataset.name, *shlex.split(dataset.example)]
    _, bound, _ = datasets_app().parse_args(tokens, exit_on_error=False, print_error=False)
    assert isinstance(bound.arguments["out"], Path)
    if dataset.files is not None:
        assert type(bound.kwargs["inputs"]) is dataset.files.inputs and bound.kwargs["inputs"].files


def test_help_names_every_dataset_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    datasets_app()(["prep", "--help"], exit_on_error=False, result_action="return_value")
    lines = [" ".join(line.strip("│ ").split()) for line in capsys.readouterr().out.splitlines()]
    assert {f"{dataset.name} {dataset.summary}" for dataset in DATASETS.values()} <= set(lines)


@pytest.mark.parametrize("name", [name for name, dataset in DATASETS.items() if dataset.files is not None])
def test_an_example_row_becomes_a_record_and_a_line_of_the_result_file(name: str, tmp_path: Path):
    dataset = DATASETS[name]
    assert dataset.files is not None
    row = OfficialRow(EXAMPLES[name], tmp_path / f"{name}_val.json", 1, 0)
    (draft,) = dataset.files.records(row)
    features = draft.get("features")
    assert (features is not None) == (dataset.files.inputs.__name__ == "VideoInputs")
    pictures = ["picture.png" for _ in draft["images"]]
    record: Record = check_record({**draft, "images": pictures}, name)
    assert record["messages"][-1]["content"], "the example has an answer"
    assert all(value is not None for value in record["meta"].values())
    if dataset.results is not None:
        path = dataset.results.write([record], {record["id"]: "A"}, tmp_path / dataset.results.name)
        assert path == tmp_path / dataset.results.name and path.stat().st_size > 1
        with pytest.raises(MmdoraError, match="no prediction for record"):
            dataset.results.write([record], {}, tmp_path / "other")
        assert sorted(tmp_path.iterdir()) == [path], "an incomplete result file is left behind"


def test_what_an_object_must_have():
    files = OfficialFiles(ImageInputs, by_ending, lambda row: [])
    good = Dataset("a", "A summary", "Details.", "--out x", Origin("MIT", "here"), files)
    for wrong in ({"summary": "x" * 61}, {"details": ""}, {"origin": Origin("", "here")}, {"make": print}):
        with pytest.raises(ValueError, match="dataset 'a'"):
            replace(good, **wrong)
    with pytest.raises(ValueError, match="dataset 'a'"):
        replace(good, files=None)
    with pytest.raises(ValueError, match="call `make`"):
        prepare(DATASETS["digits"], Path("out"), ImageInputs(files=[]))


def test_workers_start_without_torch_and_help_without_datasets():
    code = (
        "import sys, mmdora.cli; before = 'mmdora.data_prep' in sys.modules or 'numpy' in sys.modules; "
        "import mmdora.data_prep.table; print(before, 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "False False\n"
