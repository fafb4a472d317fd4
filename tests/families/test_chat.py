"""Real chat templates that are odd: how an answer is opened, written and ended, and where one cannot be read."""

from __future__ import annotations

from typing import Any

import pytest
from families.checkpoints import RECIPES
from families.recipe import TEMPLATES
from families.records import record
from transformers import AutoProcessor

from mmdora.errors import MmdoraError
from mmdora.families import Family, family_of
from mmdora.families.chat import said

TALK = record("t", [], [("What?", "A cat."), ("And?", "A dog.")])["messages"]


def family(name: str) -> Family:
    return family_of(RECIPES[name].make_processor())


def test_llava_onevision_is_learned_as_it_is_asked():
    own = family("llava_onevision")
    text, spans = own.render_with_answers(TALK)
    assert own.chat.openings == ("<|im_start|>assistant \n", "<|im_start|>assistant\n")
    assert [text[start:end] for start, end in spans] == ["A cat.<|im_end|>", "A dog.<|im_end|>"]
    assert own.render(TALK[:3], generation_prompt=True) == text[: spans[1][0]]
    assert own.render(TALK[:1], generation_prompt=True) == own.processor.apply_chat_template(
        TALK[:1], tokenize=False, add_generation_prompt=True
    )
    assert "opens an answer by" in own.notes(None)[0]


def test_gemma4_thinks_nothing_before_each_answer():
    text, spans = family("gemma4").render_with_answers(TALK)
    assert text.count("<|channel>thought\n<channel|>") == 2
    assert [text[start:end] for start, end in spans] == ["A cat.<turn|>", "A dog.<turn|>"]


def test_glm_gets_its_answers_as_text():
    text, spans = family("glm4v").render_with_answers(TALK)
    assert "'type'" not in text
    assert [text[start:end] for start, end in spans] == ["A cat.<|user|>", "A dog.<|user|>"]


def test_a_template_of_texts_alone_is_given_texts(tiny_llava: str):
    processor: Any = AutoProcessor.from_pretrained(tiny_llava)
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    text, spans = family_of(processor).render_with_answers(TALK)
    assert [text[start:end] for start, end in spans] == ["A cat.</s>", "A dog.</s>"]


def test_deepseek_ends_each_answer_once():
    own = family("deepseek_vl")
    end = own.tokenizer.eos_token
    text, spans = own.render_with_answers(TALK)
    assert text.count(end) == 2 and text.endswith(end)
    assert [text[start:end_] for start, end_ in spans] == [f" A cat.{end}", f" A dog.{end}"]


def test_a_template_that_rewrites_shows_where_and_the_way_out(tiny_llava: str):
    processor: Any = AutoProcessor.from_pretrained(tiny_llava)
    processor.chat_template = (
        "{% for m in messages %}{{ 'last: ' if loop.last else 'early: ' }}{{ m['content'][0]['text'] }}{% endfor %}"
    )
    with pytest.raises(
        MmdoraError, match=r"writes 'last: What\?' first, and later 'early: What\?.*chat_template\.jinja"
    ):
        family_of(processor).render_with_answers(TALK)


def test_a_base_without_a_template_is_told_what_to_do(tiny_llava: str):
    processor: Any = AutoProcessor.from_pretrained(tiny_llava)
    processor.chat_template = None
    with pytest.raises(MmdoraError, match=r"no chat template; name a file .*data\.template.* as chat_template\.jinja"):
        family_of(processor).render([said("user", "What?")])


def test_an_empty_thought_before_the_last_answer_belongs_to_the_prompt():
    """Qwen3's template, by which newer Qwen-VL models are asked."""
    processor = RECIPES["qwen3_vl"].make_processor()
    processor.chat_template = (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
    own = family_of(processor)
    text, spans = own.render_with_answers(TALK)
    assert text.count("<think>\n\n</think>\n\n") == 1
    assert [text[start:end] for start, end in spans] == ["A cat.<|im_end|>", "A dog.<|im_end|>"]
    assert own.render(TALK[:3], generation_prompt=True) == text[: spans[1][0]]
    assert "is not learned" in own.notes(None)[0]
