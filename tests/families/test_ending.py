"""The end of an answer: what is learned as the end of a turn is what generation stops at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import processors
import pytest
from transformers import AutoProcessor, GenerationConfig

from mmdora.cli import main
from mmdora.export import export
from mmdora.families import IGNORE, Glm4v, family_of
from mmdora.models.locate import resolve
from mmdora.records.reader import read_records
from mmdora.records.record import check_record
from mmdora.records.row import row_of

LLAVA_HUB = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The template of llava-hf/llava-1.5-7b-hf (its chat_template.json), which writes nothing behind an answer."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def processor_with(tiny_llava: str, template: str) -> Any:
    processor = AutoProcessor.from_pretrained(tiny_llava)
    processor.chat_template = template
    return processor


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


TALK = [said("user", "What?"), said("assistant", "A cat."), said("user", "And?"), said("assistant", "A dog.")]


def test_each_answer_of_a_template_without_ends_gets_one(tiny_llava: str):
    family = family_of(processor_with(tiny_llava, LLAVA_HUB))
    text, spans = family.render_with_answers(TALK)
    assert text == "USER: What? ASSISTANT: A cat.</s> USER: And? ASSISTANT: A dog.</s> "
    assert [text[start:end] for start, end in spans] == [" A cat.</s>", " A dog.</s>"]
    assert family.render(TALK[:3], generation_prompt=True) == text[: spans[1][0]], "a prompt is what was learned"


def test_the_labels_end_where_generation_stops(tiny_llava: str, scene_records: Path):
    family = family_of(processor_with(tiny_llava, LLAVA_HUB))
    row = read_records(scene_records)[0]
    batch = family.batch([row])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    ends = [
        int(labels[i])
        for i in range(len(ids))
        if labels[i] != IGNORE and (i + 1 == len(ids) or labels[i + 1] == IGNORE)
    ]
    assert ends == [family.tokenizer.eos_token_id] * sum(m["role"] == "assistant" for m in row["messages"])
    assert family.count_tokens([row]).tolist() == [int(batch["attention_mask"].sum())]


def test_a_template_that_ends_its_turns_stays_as_it_is(tiny_llava: str):
    for template in (CHATML, AutoProcessor.from_pretrained(tiny_llava).chat_template):
        family = family_of(processor_with(tiny_llava, template))
        assert family.ending.written == "</s>" and family.ending.added(TALK) is TALK
        assert not family.ending.notes(GenerationConfig(eos_token_id=family.tokenizer.eos_token_id))


GLM = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""The form of GLM-4V's template: an answer is followed by `<|user|>` of the next turn, the last one by nothing."""


def test_glm_answers_end_where_the_next_turn_begins():
    processor = processors.glm()
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    processor.chat_template = GLM
    family = family_of(processor)
    assert isinstance(family, Glm4v)
    row = row_of(check_record({"messages": TALK, "images": []}, "r"), Path())
    batch = family.batch([row])
    learned = [
        family.tokenizer.decode(list(ids))
        for is_learned, ids in groupby(batch["input_ids"][0].tolist(), key=_runs(batch["labels"][0].tolist()))
        if is_learned
    ]
    assert learned == ["A cat.<|user|>", "A dog.<|user|>"]
    user = family.tokenizer.convert_tokens_to_ids("<|user|>")
    assert family.ending.stops(GenerationConfig(eos_token_id=[2, user])) == [2, user]
    assert family.render(TALK[:3], generation_prompt=True).endswith("A cat.<|user|>\nAnd?<|assistant|>\n")


def _runs(labels: list[int]) -> Callable[[int], bool]:
    """For `groupby` over the ids of one row: whether the next one is learned."""
    left = iter(labels)
    return lambda _: next(left) != IGNORE


def test_files_that_disagree_are_told_and_generation_stops_at_both(tiny_llava: str):
    family = family_of(AutoProcessor.from_pretrained(tiny_llava))
    assert family.ending.stops(GenerationConfig(eos_token_id=3)) == [3, family.tokenizer.eos_token_id]
    assert family.ending.stops(None) == [family.tokenizer.eos_token_id]
    (note,) = family.ending.notes(GenerationConfig(eos_token_id=3))
    assert "answers end with </s>" in note and "stop at both" in note


def test_a_base_that_never_stops_is_told(tiny_llava: str):
    processor = processor_with(tiny_llava, LLAVA_HUB)
    processor.tokenizer.eos_token = None
    (note,) = family_of(processor).ending.notes(GenerationConfig())
    assert "will never stop" in note


@pytest.fixture
def disagreeing(tmp_path: Path) -> Path:
    """tiny-llava with the hub's template, whose generation config stops at another token."""
    base = tmp_path / "base"
    shutil.copytree(resolve("tiny-llava"), base)
    (base / "chat_template.jinja").write_text(LLAVA_HUB)
    config = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": 3}))
    return base


def test_dry_run_tells_and_the_export_stops_at_both(
    disagreeing: Path, scene_records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {{base: {disagreeing}}}\nadapt: {{projector: {{method: lora, rank: 1}}}}\n"
        f"data: {{train: {scene_records}}}\ntraining: {{output: {tmp_path / 'run'}, steps: 1, batch_size: 2}}\n"
    )
    assert main(["train", str(config), "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the chat template writes no end of turn, so </s> is added behind each answer" in shown
    assert "stop at both" in shown and "</s>⟧" in shown
    assert main(["train", str(config)]) == 0
    assert "</s> is added behind each answer" in " ".join(capsys.readouterr().out.split())
    export(tmp_path / "run", tmp_path / "out", say=lambda line: None)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [3, 2]
