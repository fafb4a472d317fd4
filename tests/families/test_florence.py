"""Florence-2: the question goes to the encoder, and the decoder learns the answer as the tokenizer encodes a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import blip, records

from mmdora.errors import MmdoraError
from mmdora.families import IGNORE, Florence2, ask, family_of
from mmdora.families.prompt import Prompt
from mmdora.records.images import open_image
from mmdora.records.reader import read_records
from mmdora.records.row import changed
from mmdora.records.turns import prompt_messages


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("florence")
    return read_records(records.write(folder, several=False, without=False, turns=False)[0])


@pytest.fixture(scope="module")
def family() -> Any:
    return family_of(blip.RECIPES["florence2"].make_processor())


def test_the_encoder_reads_what_the_stock_processor_makes_of_the_question(family: Any, rows: Any) -> None:
    assert isinstance(family, Florence2)
    batch = family.batch([rows[0], rows[6]])
    questions = [prompt_messages(row)[-1]["content"][-1]["text"] for row in (rows[0], rows[6])]
    pictures = [open_image(row["images"][0]) for row in (rows[0], rows[6])]
    stock = family.processor(text=questions, images=pictures, padding=True, return_tensors="pt")
    assert set(batch) == {*stock, "labels"}
    assert all(batch[name].equal(stock[name]) for name in stock)
    labels = [family.tokenizer.decode(own[own != IGNORE]) for own in batch["labels"]]
    assert labels == ["<s>red</s>", "<s>It is blue, the square is red.</s>"]
    counted = family.count_tokens([rows[0], rows[6]])
    assert counted.sum() == family.counted(batch)
    masked = family.batch([changed(rows[0], masked=True)])
    assert (masked["labels"] == IGNORE).all()


def test_a_task_of_its_own_is_asked_by_its_mark(family: Any, rows: Any) -> None:
    picture = open_image(rows[0]["images"][0])
    asked = family.encode_prompts([ask("<CAPTION>", picture)])
    assert family.tokenizer.decode(asked["input_ids"][0]).endswith("<s>What does the image describe?</s>")
    with pytest.raises(MmdoraError, match="<OCR> is asked by itself, without 'and more'"):
        family.encode_prompts([ask("<OCR> and more", picture)])


def test_one_picture_and_one_answer(family: Any, rows: Any) -> None:
    with pytest.raises(MmdoraError, match="holds 2 images; this model answers questions about one picture"):
        family.batch([changed(rows[0], images=[*rows[0]["images"], *rows[1]["images"]])])
    with pytest.raises(MmdoraError, match=r"has several answers.*data\.max_turns: 1"):
        family.check_learnable([changed(rows[0], messages=[*rows[0]["messages"], *rows[1]["messages"]])])
    with pytest.raises(MmdoraError, match="give exactly one"):
        family.encode_prompts([ask("What?")])


def test_logits_of_an_answer_are_those_of_the_decoder(family: Any, rows: Any) -> None:
    """What exports are compared by: each row of logits belongs to a token that the decoder has read."""
    read = family.encode_conversation(Prompt(rows[0]["messages"], [open_image(rows[0]["images"][0])]))
    end, start = family.tokenizer.eos_token_id, family.tokenizer.bos_token_id
    assert read["decoder_input_ids"][0, :2].tolist() == [end, start]
    assert family.tokenizer.decode(read["decoder_input_ids"][0, 2:]) == "red"
