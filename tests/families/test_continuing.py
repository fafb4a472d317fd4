"""Fuyu, GIT and Kosmos: the prompts of their authors, and answers behind what the processor makes of a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import continuing, records

from mmdora.errors import MmdoraError
from mmdora.families import IGNORE, ask, family_of
from mmdora.families.prompt import Prompt
from mmdora.records.images import open_image
from mmdora.records.reader import read_records
from mmdora.records.row import changed
from mmdora.records.turns import prompt_messages

ASKED = {"fuyu": "What?\n", "git": "[CLS]What?", "kosmos2": "Question: What? Answer:", "kosmos2_5": "What?"}
ENDS = {"fuyu": "|ENDOFTEXT|", "git": "[SEP]", "kosmos2": "</s>", "kosmos2_5": "</s>"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("continuing")
    return read_records(records.write(folder, several=False, without=False, turns=False)[0])


@pytest.mark.parametrize("name", ASKED)
def test_an_answer_follows_the_question_that_the_model_is_asked(name: str, rows: Any) -> None:
    family = family_of(continuing.RECIPES[name].make_processor())
    assert family.render(ask("What?").messages, generation_prompt=True) == ASKED[name]
    one = rows[0]
    asked = family.encode_prompts([Prompt(prompt_messages(one), [open_image(one["images"][0])])])
    batch = family.batch([one, rows[4]])
    length = asked["input_ids"].shape[1]
    assert batch["input_ids"][0, :length].equal(asked["input_ids"][0])
    learned = batch["labels"][0] != IGNORE
    assert not learned[:length].any() and batch["input_ids"][0][learned].equal(batch["labels"][0][learned])
    assert family.tokenizer.decode(batch["labels"][0][learned]).strip() == f"red{ENDS[name]}"
    alone = family.batch([one])
    seen = batch["attention_mask"][0].bool()
    assert batch["input_ids"][0][seen].equal(alone["input_ids"][0]) and seen.sum() == family.counted(alone)


@pytest.mark.parametrize("name", ["fuyu", "kosmos2"])
def test_questions_are_padded_before_them(name: str, rows: Any) -> None:
    family = family_of(continuing.RECIPES[name].make_processor())
    prompts = [Prompt(prompt_messages(row), [open_image(row["images"][0])]) for row in (rows[0], rows[4])]
    together, alone = family.encode_prompts(prompts), family.encode_prompts(prompts[:1])
    length = alone["input_ids"].shape[1]
    assert together["input_ids"][0, -length:].equal(alone["input_ids"][0])
    assert together["attention_mask"][0].sum() == length


def test_one_picture_and_one_answer(rows: Any) -> None:
    family = family_of(continuing.git())
    with pytest.raises(MmdoraError, match="holds 2 images; this model answers questions about one picture"):
        family.batch([changed(rows[0], images=[*rows[0]["images"], *rows[1]["images"]])])
    with pytest.raises(MmdoraError, match=r"has several answers.*data\.max_turns: 1"):
        family.batch([changed(rows[0], messages=[*rows[0]["messages"], *rows[1]["messages"]])])
    with pytest.raises(MmdoraError, match="give exactly one"):
        family.encode_prompts([ask("What?")])
