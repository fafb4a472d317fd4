"""Batches of encoder-decoders: what BART's own tokenizer and loss say, and what evaluation asks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from shrunken_vlbart import picture, small_vlbart
from torch.nn.functional import cross_entropy

from mmdora.errors import MmdoraError
from mmdora.evaluate.asking import Asking
from mmdora.evaluate.tasks import task_of
from mmdora.families import family_of
from mmdora.prepare.record import asked
from mmdora.records.record import qa_record
from mmdora.records.row import changed, row_of


@pytest.fixture(scope="module")
def vlbart():
    return small_vlbart("resnet")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    np.save(tmp_path / "clip.npy", np.ones((2, 64), np.float32))
    return tmp_path


def pair(root: Path, answer: str, **more):
    return changed(row_of(asked("train-0-0-0", ["0.png", "1.png"], "both show a dog.", answer), root), **more)


def test_labels_are_the_answers_as_the_tokenizer_writes_them(vlbart, root):
    _, processor = vlbart
    batch = family_of(processor).batch([pair(root, "true"), pair(root, "no dog", masked=False)])
    for row, answer in enumerate(("true", "no dog")):
        ids = processor.tokenizer(answer)["input_ids"]
        assert batch["labels"][row, : len(ids)].tolist() == ids
        assert (batch["labels"][row, len(ids) :] == -100).all()
    assert batch["pixel_values"].shape[:2] == (2, 2) and "loss_weights" not in batch


def test_the_encoder_reads_what_evaluation_asks(vlbart, root):
    _, processor = vlbart
    learned = family_of(processor).batch([pair(root, "true", task="nlvr")])
    asked_ = family_of(processor).encode_prompts([Asking(processor, task_of("nlvr2"))._prompt(pair(root, "true"), {})])
    for key, value in asked_.items():
        assert torch.equal(learned[key], value), key
    assert processor.tokenizer.decode(learned["input_ids"][0]) == "<s>nlvr: both show a dog.</s>"


def test_rows_without_anything_to_learn_weigh_nothing(vlbart, root):
    model, processor = vlbart
    batch = family_of(processor).batch([pair(root, "true", masked=True)])
    assert (batch["labels"] == -100).all()
    assert model(**batch).loss.item() == 0.0


def test_weights_multiply_the_loss_of_their_row(vlbart, root):
    model, processor = vlbart
    rows = [pair(root, "true", weight=0.3), pair(root, "a large black dog", weight=0.9), pair(root, "no")]
    batch = family_of(processor).batch(rows)
    assert batch["loss_weights"].tolist() == pytest.approx([0.3, 0.9, 1.0])
    with torch.no_grad():
        found = model(**batch)
        plain = model(**{key: value for key, value in batch.items() if key != "loss_weights"}).loss
    each = cross_entropy(found.logits.double().transpose(1, 2), batch["labels"], reduction="none").sum(1)
    count = (batch["labels"] != -100).sum()
    assert float(found.loss) == pytest.approx(float((each * batch["loss_weights"].double()).sum() / count), rel=1e-6)
    assert float(plain) == pytest.approx(float(each.sum() / count), rel=1e-6)
    with torch.no_grad():
        share = model(**batch, num_items_in_batch=torch.tensor(100)).loss
    assert float(share) == pytest.approx(float(found.loss) * int(count) / 100, rel=1e-6)


def test_clips_come_as_features(root):
    _, processor = small_vlbart(None)
    row = changed(row_of(asked("a", [], "what?", "left", features="clip.npy"), root), task="tvqa")
    batch = family_of(processor).batch([row, row])
    assert batch["visual_features"].shape == (2, 1, 6, 64)
    assert processor.tokenizer.decode(batch["input_ids"][0]) == "<s>what? tvqa: </s>"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            qa_record("q", "0.png", [("one?", "yes"), ("two?", "no")]),
            r"record q: has several answers.*max_turns: 1",
        ),
        (
            asked("q", ["0.png"], "what?", "a" * 200),
            r"record q: its answer has 202 tokens; this model writes at most 96",
        ),
        (asked("q", ["0.png"], "w" * 200, "a"), r"a text has 202 tokens; the encoder of this model reads at most 96"),
        (asked("q", ["2.png"], "what?", "a"), r"record q: .*2\.png"),
        (asked("q", [], "what?", "a", features="none.npy"), r"record q: .*none\.npy"),
        (asked("q", [], "what?", "a") | {"task": "quiz"}, r"record q: unknown task 'quiz'"),  # type: ignore
    ],
)
def test_what_cannot_be_learned_is_said_with_its_row(vlbart, root, row, message):
    task = row.get("task")
    with pytest.raises(MmdoraError, match=message):
        family_of(vlbart[1]).batch([changed(row_of(row, root), task=task)])


def test_a_typed_question_gets_the_default_prompt(root):
    _, processor = small_vlbart("resnet")
    ask = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a dog?"}]}]
    assert processor.apply_chat_template(ask) == "a dog?"
    processor.default_task = "vqa"
    assert processor.apply_chat_template(ask) == "vqa: a dog?"
    ask[0]["content"][1]["text"] = "caption: a dog?"
    assert processor.apply_chat_template(ask) == "caption: a dog?"
    processor.save_pretrained(root / "saved")
    assert type(processor).from_pretrained(root / "saved").default_task == "vqa"
