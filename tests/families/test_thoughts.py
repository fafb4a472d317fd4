"""`data.thoughts`: an answer's thought is learned and asked for, and is no part of what is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families.checkpoints import RECIPES
from families.recipe import TEMPLATES
from families.records import record
from text_bases import write_base
from tiny_run import config_of, silent

import mmdora
from mmdora.config import Data
from mmdora.errors import MmdoraError
from mmdora.export.run import export
from mmdora.families import family_of
from mmdora.families.thoughts import THINKS, without_thought
from mmdora.models.chat_template import set_template, template_of
from mmdora.records.reader import write_records
from mmdora.train import overview, train

THOUGHT = "<think>\nIt purrs.\n</think>\n\nA cat."
TALK = record("t", [], [("What?", THOUGHT)])["messages"]
LONGER = record("t", [], [("What?", THOUGHT), ("And?", "A dog.")])["messages"]


def processor_of(template: str, thoughts: bool) -> Any:
    processor = RECIPES["qwen3_vl"].make_processor()
    processor.chat_template = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    set_template(processor, template_of(Data(thoughts=thoughts)))
    return processor


def test_a_thought_is_learned_with_its_answer() -> None:
    family = family_of(processor_of("qwen3", thoughts=True))
    text, spans = family.render_with_answers(TALK)
    assert [text[start:end] for start, end in spans] == [f"{THOUGHT}<|im_end|>"]
    assert family.render(TALK[:1], generation_prompt=True) == text[: spans[0][0]]
    assert "thoughts are learned" in family.notes(None)[0]


def test_of_a_conversation_the_last_answer_is_learned_and_a_thought_before_it_dropped() -> None:
    """An answer without a thought gets an empty one, which is learned too, because the prompt does not hold it."""
    family = family_of(processor_of("qwen3", thoughts=True))
    text, spans = family.render_with_answers(LONGER)
    assert [text[start:end] for start, end in spans] == ["<think>\n\n</think>\n\nA dog.<|im_end|>"]
    assert "purrs" not in text and family.render(LONGER[:3], generation_prompt=True) == text[: spans[0][0]]


def test_a_thought_that_would_be_learned_but_never_asked_for_is_refused() -> None:
    family = family_of(processor_of("qwen3", thoughts=False))
    with pytest.raises(MmdoraError, match=r"its answer holds a thought .*; set data\.thoughts: true"):
        family.render_with_answers(TALK)


def test_a_template_without_thoughts_is_refused_with_them() -> None:
    with pytest.raises(MmdoraError, match=r"data\.thoughts: the chat template of this base knows no thoughts"):
        processor_of("qwen3_vl", thoughts=True)
    text, spans = family_of(processor_of("qwen3_vl", thoughts=False)).render_with_answers(TALK)
    assert [text[start:end] for start, end in spans] == [f"{THOUGHT}<|im_end|>"]  # There it is a text like any other.


def test_a_template_that_drops_the_thought_is_refused() -> None:
    processor = processor_of("qwen3", thoughts=True)
    processor.chat_template = (
        f"{THINKS}{{% for m in messages %}}{{{{ m['role'] + '\\n' + m['content'].split('</think>')[-1] }}}}<|im_end|>"
        "{% endfor %}{{ 'assistant\\n' if add_generation_prompt }}"
    )
    with pytest.raises(
        MmdoraError, match=r"drops the thought of its answer; give one that keeps it \(data\.template\)"
    ):
        family_of(processor).render_with_answers(TALK)


def test_adapter_and_export_ask_for_thoughts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base("qwen3", tmp_path / "base")
    write_records(tmp_path / "train.jsonl", [record(str(number), [], [("What?", THOUGHT)]) for number in range(4)])
    config = config_of(
        {
            "model": {"base": base},
            "adapt": {"language": {"method": "lora", "rank": 2}},
            "data": {"train": str(tmp_path / "train.jsonl"), "thoughts": True},
            "training": {"output": str(tmp_path / "run"), "steps": 1, "batch_size": 2},
        }
    )
    overview.show_batch(config)
    told = capsys.readouterr().out
    assert "thoughts are learned" in told and "⟦<think>" in told
    run = train(config, say=silent)
    _, processor = mmdora.load(run)
    assert family_of(processor).render(TALK[:1], generation_prompt=True).endswith("<|im_start|>assistant\n")
    export(run, tmp_path / "out", parity="tensors", say=silent)
    assert (tmp_path / "out/chat_template.jinja").read_text(encoding="utf-8").startswith(THINKS)


def test_a_thought_is_no_part_of_an_answer_that_is_scored() -> None:
    assert without_thought(THOUGHT) == "A cat."
    assert without_thought("It purrs.\n</think>\n\nA cat.") == "A cat."  # The prompt opened the thought.
    assert without_thought("A cat. </think>") == "A cat. </think>" and without_thought("<think> A") == "<think> A"
