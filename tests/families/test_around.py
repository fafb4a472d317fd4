"""What the processors of Janus, Emu3, Chameleon and GOT-OCR write around a conversation belongs to the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import records
from families.checkpoints import RECIPES, TOO_OLD
from transformers import Phi4MultimodalConfig

from mmdora.cli import main
from mmdora.errors import MmdoraError
from mmdora.families import IGNORE, ask, family_of
from mmdora.records.images import open_image
from mmdora.records.reader import read_records

LEARNED = {
    "janus": "red<｜end▁of▁sentence｜>",
    "emu3": "red<|extra_204|>",
    "chameleon": "red</s>",
    "got_ocr2": "red<|im_end|>",
}


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return read_records(records.write(tmp_path_factory.mktemp("around"))[0])[0]


@pytest.mark.parametrize("name", sorted(LEARNED.keys() - TOO_OLD))
def test_a_row_is_the_stock_prompt_and_its_answer(name: str, row: Any) -> None:
    family = family_of(RECIPES[name].make_processor())
    picture = open_image(row["images"][0])
    batch = family.batch([row])
    learned = batch["labels"][0] != IGNORE
    assert family.tokenizer.decode(batch["labels"][0][learned]).strip() == LEARNED[name]
    asked = ask(row["messages"][0]["content"][1]["text"], picture)
    stock = RECIPES[name].make_processor()
    text = (stock if getattr(stock, "chat_template", None) else family.processor).apply_chat_template(
        asked.messages, tokenize=False, add_generation_prompt=True
    )
    ids = stock(text=[text], images=[picture], return_tensors="pt")["input_ids"][0]
    assert family.encode_prompts([asked])["input_ids"][0].equal(ids)
    assert batch["input_ids"][0, : len(ids)].equal(ids) and int(learned.nonzero()[0]) == len(ids)


def test_got_ocr_reads_one_picture(row: Any) -> None:
    family = family_of(RECIPES["got_ocr2"].make_processor())
    with pytest.raises(MmdoraError, match="this model reads one picture; give exactly one"):
        family.encode_prompts([ask("OCR: ")])


def test_what_is_registered_as_a_language_model_but_sees_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Phi4MultimodalConfig().save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 2
    assert "'phi4_multimodal' reads pictures, but the installed transformers has no" in capsys.readouterr().err
