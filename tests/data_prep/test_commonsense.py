"""The commonsense datasets: their own forms, and the form of LLM-Adapters, which are the same questions."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kept_records import records_in

from mmdora.data_prep import arc, commonsense, openbookqa, piqa, siqa, winogrande
from mmdora.errors import MmdoraError
from mmdora.evaluate import options
from mmdora.evaluate.tasks import TASKS
from mmdora.prepare.inputs import Inputs
from mmdora.prepare.run import prepare

PIQA = {"goal": "Where can I buy a ball", "sol1": "At a shop", "sol2": "At a racket", "label": 0}
SIQA = {"context": "Tracy resisted.", "question": "What does Tracy need?", "answerA": "a plan", "answerB": "to go home",
        "answerC": "somewhere", "label": "3"}  # fmt: skip
ARC = {"id": "M-1", "question": "Which part absorbs water?", "answerKey": "A",
       "choices": {"text": ["Roots", "Stems", "Leaves", "Flowers"], "label": ["A", "B", "C", "D"]}}  # fmt: skip
OBQA = {"id": "7-9", "question_stem": "Some adjust to", "answerKey": "2",
        "choices": {"text": ["cold", "water"], "label": ["1", "2"]}}  # fmt: skip
HELLASWAG = {"ind": 4, "activity_label": "Travel", "ctx_a": "[header] How to go.", "ctx_b": "he", "split": "val",
             "ctx": "[header] How to go. he", "endings": ["walks", "[step] runs", "sits", "flies"], "label": "1",
             "split_type": "indomain", "source_id": "x"}  # fmt: skip
WINOGRANDE = {"sentence": "The cup fell so _ broke.", "option1": "cup", "option2": "table", "answer": "1"}
BOOLQ = {"question": "is it", "passage": "It is.", "answer": True}

# These are questions of LLM-Adapters' dataset/*/test.json in the same places, with other words in them.
WORDED = [
    (PIQA, "Please choose the correct solution to the question: Where can I buy a ball\n\nSolution1: At a shop\n\n"
           "Solution2: At a racket\n\nAnswer format: solution1/solution2", "solution1"),
    (SIQA, "Please choose the correct answer to the question: Tracy resisted. What does Tracy need?\n\nAnswer1: a plan "
           "Answer2: to go home Answer3: somewhere\n\nAnswer format: answer1/answer2/answer3", "answer3"),
    (ARC, "Please choose the correct answer to the question: Which part absorbs water?\n\nAnswer1: Roots "
          "Answer2: Stems Answer3: Leaves Answer4: Flowers\n\n"
          "Answer format: answer1/answer2/answer3/answer4", "answer1"),
    (OBQA, "Please choose the correct answer to the question: Some adjust to\n\nAnswer1: cold Answer2: water\n\n"
           "Answer format: answer1/answer2", "answer2"),
    (HELLASWAG, "Please choose the correct ending to complete the given sentence: Travel: [header] How to go. he\n\n"
                "Ending1: walks Ending2: [step] runs Ending3: sits Ending4: flies\n\n"
                "Answer format: ending1/ending2/ending3/ending4", "ending2"),
    (WINOGRANDE, "Please choose the correct answer to fill in the blank to complete the given sentence: The cup fell "
                 "so _ broke.\n\nOption1: cup Option2: table Answer format: option1/option2", "option1"),
    (BOOLQ, "Please answer the following question with true or false, question: is it?\n\nAnswer format: true/false",
     "true"),
]  # fmt: skip


def test_original_rows_become_those_of_the_collection(official, tmp_path, question_of, answer_of, full_marks):
    file = official("dev.jsonl", [row for row, _, _ in WORDED], lines=True)
    prepare(commonsense.DATASET, tmp_path / "out", Inputs(files=[file]))
    records = records_in(tmp_path / "out/dev.jsonl")
    assert [question_of(record) for record in records] == [text for _, text, _ in WORDED]
    assert [answer_of(record) for record in records] == [f"the correct answer is {label}" for *_, label in WORDED]
    assert full_marks("commonsense", records)
    kinds = [record["meta"]["type"] for record in records]
    assert kinds == ["piqa", "siqa", "arc", "openbookqa", "hellaswag", "winogrande", "boolq"]


def test_files_of_the_collection(official, tmp_path, question_of, answer_of, full_marks):
    (tmp_path / "ARC-Easy").mkdir()
    rows = [{"instruction": text, "input": "", "output": f"the correct answer is {label}", "answer": label}
            for _, text, label in WORDED]  # fmt: skip
    file = official("ARC-Easy/test.json", rows)
    assert prepare(commonsense.DATASET, tmp_path / "out", Inputs(files=[file])) == {"test": 7}
    records = records_in(tmp_path / "out/test.jsonl")
    assert [question_of(record) for record in records] == [text for _, text, _ in WORDED]
    assert full_marks("commonsense", records) and records[2]["meta"]["type"] == "arc-easy"
    assert prepare(commonsense.DATASET, tmp_path / "all", Inputs(files=[official("commonsense_170k.json", rows)])) == {
        "train": 7
    }
    with pytest.raises(MmdoraError, match="the answer 'maybe' is none of the collection's labels"):
        prepare(
            commonsense.DATASET, tmp_path / "b", Inputs(files=[official("test.json", [rows[0] | {"answer": "maybe"}])])
        )
    with pytest.raises(MmdoraError, match="a row of none of the known forms"):
        prepare(commonsense.DATASET, tmp_path / "c", Inputs(files=[official("test.json", [{"text": "x"}])]))


def test_labels_stand_in_a_file_of_their_own(official, tmp_path, answer_of):
    bare = {key: PIQA[key] for key in ("goal", "sol1", "sol2")}
    questions = official("valid.jsonl", [bare, bare], lines=True)
    labels = tmp_path / "valid-labels.lst"
    labels.write_text("1\n0\n")
    prepare(piqa.DATASET, tmp_path / "out", Inputs(files=[questions, labels], split="valid"))
    assert [answer_of(record) for record in records_in(tmp_path / "out/valid.jsonl")] == ["B", "A"]
    prepare(piqa.DATASET, tmp_path / "bare", Inputs(files=[questions], split="valid"))
    assert [answer_of(record) for record in records_in(tmp_path / "bare/valid.jsonl")] == [None, None]
    for text, message in (("1\n", "ends before the questions do"), ("1\n0\n1\n", "has more lines than")):
        labels.write_text(text)
        with pytest.raises(MmdoraError, match=message):
            prepare(piqa.DATASET, tmp_path / "wrong", Inputs(files=[questions, labels], split="valid"))
    with pytest.raises(MmdoraError, match=r"labels without their questions; add valid\.jsonl"):
        prepare(piqa.DATASET, tmp_path / "alone", Inputs(files=[labels], split="valid"))


def test_the_hubs_files_and_the_owners_nested_ones(official, tmp_path, question_of, answer_of, full_marks):
    pq.write_table(pa.Table.from_pylist([ARC]), tmp_path / "test-0.parquet")
    prepare(arc.DATASET, tmp_path / "arc", Inputs(files=[tmp_path / "test-0.parquet"]))
    nested = {"id": "M-1", "answerKey": "A", "question": {"stem": ARC["question"], "choices": [
        {"text": text, "label": label} for text, label in zip(*ARC["choices"].values(), strict=True)]}}  # fmt: skip
    prepare(arc.DATASET, tmp_path / "own", Inputs(files=[official("ARC-Test.jsonl", [nested], lines=True)]))
    ours, theirs = (records_in(tmp_path / name / "test.jsonl") for name in ("arc", "own"))
    assert ours == theirs and answer_of(ours[0]) == "A" and full_marks("choice", ours)
    assert question_of(ours[0]).startswith("Which part absorbs water?\nA. Roots\nB. Stems")
    for dataset, row, answer in (
        (openbookqa.DATASET, OBQA, "B"),
        (siqa.DATASET, SIQA, "C"),
        (winogrande.DATASET, WINOGRANDE, "A"),
    ):
        prepare(dataset, tmp_path / dataset.name, Inputs(files=[official("dev.jsonl", [row], lines=True)]))
        assert answer_of(records_in(tmp_path / dataset.name / "dev.jsonl")[0]) == answer


# Word for word what lm-evaluation-harness compares.
LIKELIHOODS = {
    "piqa": (PIQA, [("Question: Where can I buy a ball\nAnswer:", " At a shop"),
                    ("Question: Where can I buy a ball\nAnswer:", " At a racket")]),
    "siqa": (SIQA, [("Q: Tracy resisted. What does Tracy need?\nA:", f" {text}") for text in
                    ("a plan", "to go home", "somewhere")]),
    "hellaswag": (HELLASWAG, [("Travel:  How to go. He", f" {text}") for text in ("walks", " runs", "sits", "flies")]),
    "winogrande": (WINOGRANDE, [("The cup fell so cup", " broke."), ("The cup fell so table", " broke.")]),
    "arc": (ARC, [("Question: Which part absorbs water?\nAnswer:", f" {text}") for text in
                  ("Roots", "Stems", "Leaves", "Flowers")]),
    "openbookqa": (OBQA, [("Some adjust to", " cold"), ("Some adjust to", " water")]),
    "boolq": (BOOLQ, [("It is.\nQuestion: is it?\nAnswer:", " no"), ("It is.\nQuestion: is it?\nAnswer:", " yes")]),
}  # fmt: skip


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_are_asked_as_published(name, official, tmp_path):
    from mmdora.data_prep.table import DATASETS

    row, wanted = LIKELIHOODS[name]
    prepare(DATASETS[name], tmp_path / "out", Inputs(files=[official("dev.jsonl", [row], lines=True)], split="dev"))
    (record,) = records_in(tmp_path / "out/dev.jsonl")
    ask = TASKS[f"{name}-likelihood"].options
    assert ask is not None
    assert [((before or "").replace("  ", " "), after.replace("  ", " ")) for before, after in ask(record)] == [
        (before.replace("  ", " "), after.replace("  ", " ")) for before, after in wanted
    ]
    if name != "boolq":
        assert [text for _, text in options.of_choices(record)] == record["meta"]["choices"]


def test_records_of_an_earlier_version_are_told(official, tmp_path):
    prepare(winogrande.DATASET, tmp_path / "out", Inputs(files=[official("dev.jsonl", [WINOGRANDE], lines=True)]))
    record = json.loads((tmp_path / "out/dev.jsonl").read_text())
    del record["meta"]["sentence"]
    with pytest.raises(MmdoraError, match=r"no 'meta.sentence'.*this version's `mmdora prep`"):
        options.winogrande(record)
