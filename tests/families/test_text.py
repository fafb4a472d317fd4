"""Language models without a tower: how they read conversations, learn answers and are asked."""

from pathlib import Path
from typing import Any

import pytest
from text_bases import BASES, tokenizer_of

from mmdora.errors import MmdoraError
from mmdora.families import IGNORE, Prompt, family_of
from mmdora.families.thoughts import EMPTY
from mmdora.records.record import qa_record
from mmdora.records.row import Row, row_of

PAIRS = [("what is it?", "blue"), ("why?", "so it is")]


def row(*pairs: tuple[str, str]) -> Row:
    record = qa_record("a", "a.png", list(pairs))
    record["messages"][0]["content"] = record["messages"][0]["content"][1:]
    record["images"] = []
    return row_of(record, Path())


def learned(family: Any, batch: Any, index: int = 0) -> list[str]:
    """The pieces of a row that are learned, decoded."""
    pieces, last = [], False
    for token, label in zip(batch["input_ids"][index].tolist(), batch["labels"][index].tolist(), strict=True):
        if label != IGNORE:
            pieces[-1:] = [[*pieces[-1], token]] if last else [*pieces[-1:], [token]]
        last = label != IGNORE
    return [family.tokenizer.decode(ids) for ids in pieces]


@pytest.mark.parametrize("name", BASES)
def test_answers_and_their_ends_are_learned_and_generation_stops_there(name: str):
    family = family_of(tokenizer_of(name))
    end = family.tokenizer.convert_ids_to_tokens(family.ending.token_id)
    batch = family.batch([row(*PAIRS), row(PAIRS[0])])
    assert learned(family, batch) == [f"blue{end}", f"so it is{end}"]
    assert family.ending.token_id in family.ending.stops(None)
    assert int(batch["attention_mask"][1].sum()) == family.count_tokens([row(PAIRS[0])])[0]


@pytest.mark.parametrize("name", BASES)
def test_a_prompt_is_what_was_learned_up_to_the_answer(name: str):
    family = family_of(tokenizer_of(name))
    learnt = family.batch([row(PAIRS[0])])
    start = int((learnt["labels"][0] != IGNORE).nonzero()[0])
    asked = family.encode_prompts(
        [Prompt(row(PAIRS[0])["messages"][:1]), Prompt(row(("a longer question?", "b"))["messages"][:1])]
    )
    kept = asked["input_ids"][0][asked["attention_mask"][0] == 1]
    assert kept.tolist() == learnt["input_ids"][0][:start].tolist()


@pytest.mark.parametrize("name", [name for name, base in BASES.items() if base[1]])
def test_a_conversation_is_what_the_template_writes(name: str):
    family = family_of(tokenizer_of(name))
    plain = [{"role": m["role"], "content": m["content"][0]["text"]} for m in row(*PAIRS)["messages"]]
    stock = family.tokenizer.apply_chat_template(plain, tokenize=False)
    assert family.render_with_answers(row(*PAIRS)["messages"])[0] == stock


def test_an_empty_thought_is_part_of_the_prompt():
    family = family_of(tokenizer_of("qwen3"))
    text, spans = family.render_with_answers(row(*PAIRS)["messages"])
    assert [text[start:end] for start, end in spans] == ["blue<|im_end|>", "so it is<|im_end|>"]
    assert text.count(EMPTY) == 1 and text[: spans[1][0]].endswith(EMPTY)
    assert family.render(row(*PAIRS)["messages"][:1], generation_prompt=True).endswith(EMPTY)


def test_a_base_without_a_template_is_asked_as_alpaca_was():
    family = family_of(tokenizer_of("llama"))
    text = family.render(row(PAIRS[0])["messages"][:1], generation_prompt=True)
    assert text == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nwhat is it?\n\n### Response:\n"
    )
    assert family.tokenizer.apply_chat_template([{"role": "user", "content": "what is it?"}], tokenize=False) == text
    system = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *row(PAIRS[0])["messages"]]
    assert family.render(system).startswith("<s>Be brief.\n\n### Instruction:\nwhat is it?")
    batch = family.batch([row(*PAIRS)])
    assert batch["input_ids"][0].tolist().count(family.tokenizer.bos_token_id) == 1


def test_pictures_and_budgets_of_pictures_are_refused(tmp_path: Path):
    family = family_of(tokenizer_of("qwen2"))
    pictured = row_of(qa_record("a", "a.png", PAIRS), tmp_path)
    with pytest.raises(MmdoraError, match="record a: holds a picture, and this model reads text alone"):
        family.batch([pictured])
    with pytest.raises(MmdoraError, match="record a: holds a picture"):
        family.count_tokens([pictured])
    with pytest.raises(MmdoraError, match="ask it without a picture"):
        family.encode_prompts([Prompt(pictured["messages"][:1], [object()])])  # type: ignore[list-item]


def test_a_tokenizer_that_cannot_tell_places_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = tokenizer_of("qwen2")
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(MmdoraError, match="is a slow tokenizer"):
        family_of(tokenizer)
