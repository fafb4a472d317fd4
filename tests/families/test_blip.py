"""BLIP-2 and InstructBLIP: the prompts of their authors, and what their language model and their Q-Former read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import records
from families.blip import blip_2, instructblip

from mmdora.errors import MmdoraError
from mmdora.families import IGNORE, ask, family_of
from mmdora.records.images import open_image
from mmdora.records.reader import read_records
from mmdora.records.row import changed


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("blip")
    return read_records(records.write(folder, several=False, without=False)[0])


def test_the_prompts_of_the_authors():
    assert family_of(blip_2()).render(ask("What?").messages, generation_prompt=True) == "Question: What? Answer:"
    assert family_of(instructblip()).render(ask("What?").messages, generation_prompt=True) == "What?"


def test_a_conversation_of_blip_2(rows: Any):
    (row,) = [row for row in rows if row["id"] == "turns"]
    text = family_of(blip_2()).render(row["messages"])
    first, second = "What colour is the square?", "And the circle?"
    assert text.startswith(f"Question: {first} Answer: red</s> Question: {second} Answer: It is blue")


def test_an_answer_is_learned_behind_the_picture_and_the_prompt(rows: Any):
    family = family_of(blip_2())
    batch = family.batch([rows[0], rows[1]])
    learned = batch["labels"][1] != IGNORE
    assert family.tokenizer.decode(batch["labels"][1][learned]) == " blue</s>"
    assert batch["labels"][:, :4].eq(IGNORE).all() and (batch["input_ids"][:, :4] == family.image_id).all()
    assert batch["input_ids"][1][learned].equal(batch["labels"][1][learned])


def test_the_q_former_sees_the_question_and_no_answer(rows: Any):
    family = family_of(instructblip())
    batch = family.batch([rows[0]])
    read = family.processor.qformer_tokenizer.decode(batch["qformer_input_ids"][0])
    assert read == "What colour is the square?"
    asked = family.encode_prompts([ask(read, open_image(rows[0]["images"][0]))])
    assert asked["qformer_input_ids"].tolist() == batch["qformer_input_ids"].tolist()


def test_what_they_cannot_read_is_refused(rows: Any):
    (turns,) = [row for row in rows if row["id"] == "turns"]
    with pytest.raises(MmdoraError, match="has several answers"):
        family_of(instructblip()).batch([turns])
    family = family_of(blip_2())
    with pytest.raises(MmdoraError, match="holds 2 images; this model answers questions about one picture"):
        family.batch([changed(rows[0], images=[*rows[0]["images"], *rows[1]["images"]])])
    with pytest.raises(MmdoraError, match="give exactly one"):
        family.encode_prompts([ask("What?")])
    family.processor.chat_template = "<image>{{ messages[0]['content'][0]['text'] }}"
    with pytest.raises(MmdoraError, match="writes '<image>', which the processor itself does"):
        family.render(ask("What?").messages)
    processor = blip_2()
    processor.tokenizer.bos_token = None
    with pytest.raises(MmdoraError, match="encoder-decoder"):
        family_of(processor).render(ask("What?").messages)


def test_a_template_in_the_folder_is_read(tmp_path: Path):
    processor = blip_2()
    processor.tokenizer.chat_template = "{{ messages[0]['content'][0]['text'] }}"
    assert family_of(processor).render(ask("What?").messages) == "What?"
