"""Every row is checked before the model is loaded: none stops the run when its turn comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import config_of, first_turns, silent, tree_for
from transformers import AutoProcessor

import mmdora.train.loading as loading
from mmdora.batches import lengths
from mmdora.batches.fit import fit
from mmdora.errors import MmdoraError
from mmdora.families import Family, family_of
from mmdora.records.reader import read_records
from mmdora.train import train

CHATML = "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'][0]['text'] }}</s>\n{% endfor %}"
CHATML += "{% if add_generation_prompt %}assistant:\n{% endif %}"
SUMMED = "{% if 'sum' in messages[0]['content'][0]['text'] %}{{ messages | length }} turns\n{% endif %}" + CHATML
"""A template that writes what comes later before what comes first, for some conversations only."""


def records(path: Path, *questions: str, answers: list[str] | None = None) -> Path:
    """A record without a picture for each question, named by its number."""
    pairs = zip(questions, answers or ["yes"] * len(questions), strict=True)
    turns = [list(zip(("user", "assistant"), pair, strict=True)) for pair in pairs]
    said = [[{"role": role, "content": [{"type": "text", "text": text}]} for role, text in each] for each in turns]
    path.write_text("".join(json.dumps({"id": f"r{i}", "messages": each}) + "\n" for i, each in enumerate(said)))
    return path


def processor_of(base: str, template: str) -> Any:
    processor = AutoProcessor.from_pretrained(base)
    processor.chat_template = template
    return processor


@pytest.mark.parametrize("limit", [None, 200])
def test_the_first_row_that_cannot_be_masked_is_named(tiny_llava, tmp_path, limit):
    path = records(tmp_path / "a.jsonl", *["is it red?"] * 300, "what is the sum?", "and this sum?")
    with pytest.raises(MmdoraError, match=r"a\.jsonl: record r300: the chat template rewrites earlier turns"):
        fit(read_records(path), family_of(processor_of(tiny_llava, SUMMED)), limit, "error")
    assert len(fit(read_records(path), family_of(processor_of(tiny_llava, CHATML)), limit, "error")) == 302


def test_rows_that_are_left_out_need_no_mask(tiny_llava, tmp_path):
    path = records(tmp_path / "a.jsonl", "is it red?", "what is the sum? " * 50)
    assert len(fit(read_records(path), family_of(processor_of(tiny_llava, SUMMED)), 60, "drop")) == 1


def test_a_run_stops_before_its_model_is_loaded(scene_records, tiny_llava, tmp_path, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(loading, "load", lambda *_, **__: seen.append("loaded"))
    # Rows of other ids: what another test has found out about the same rows is kept, and would not be asked again.
    path = tmp_path / "rows.jsonl"
    path.write_text(first_turns(scene_records, 10).read_text().replace('"id": "', '"id": "refused-'))
    real, last = Family.render_with_answers, read_records(path)[9]

    def refuse(self: Family, messages: Any) -> Any:
        if messages == last["messages"]:
            raise MmdoraError("it is not known where the answers are")
        return real(self, messages)

    monkeypatch.setattr(Family, "render_with_answers", refuse)
    data = tree_for(path, tmp_path / "run", evaluates=False)
    data["data"]["images"] = str(scene_records.parent)
    with pytest.raises(MmdoraError, match=rf"record {last['id']}: it is not known where the answers are"):
        train(config_of(data), say=silent)
    assert not seen


def test_the_check_is_made_once_for_the_same_content(tiny_llava, tmp_path, monkeypatch):
    checked, bars, real, bar = [], [], Family.check_learnable, lengths.tqdm
    monkeypatch.setattr(Family, "check_learnable", lambda self, rows: checked.append(len(rows)) or real(self, rows))
    monkeypatch.setattr(lengths, "tqdm", lambda **look: bars.append(look["desc"]) or bar(**look))
    path, family = (
        records(tmp_path / "a.jsonl", "is it red?", "is it blue?"),
        family_of(processor_of(tiny_llava, CHATML)),
    )
    for _ in range(2):
        fit(read_records(path), family, 200, "error")
    assert checked == [2] and bars == ["count tokens", "check rows"]
    fit(read_records(path), family_of(processor_of(tiny_llava, f"Hello.\n{CHATML}")), 200, "error")
    records(path, "is it red?", "is it green?", "or what?")
    fit(read_records(path), family, 200, "error")
    assert checked == [2, 2, 3]


def test_what_is_masked_without_pictures_is_what_a_batch_masks(scene_records, tiny_llava, monkeypatch):
    """The check tokenizes the text alone; the pictures, expanded in a batch, change no label."""
    family, seen = family_of(AutoProcessor.from_pretrained(tiny_llava)), []
    real = Family._labels
    monkeypatch.setattr(Family, "_labels", lambda *given: seen.append(real(*given)) or seen[-1])
    rows = list(read_records(scene_records))[:8]
    family.check_learnable(rows)
    family.batch(rows)
    alone, batch = ([[label for label in own if label != -100] for own in labels] for labels in seen)
    assert alone == batch and all(alone)


def test_an_answer_that_a_decoder_has_no_places_for(tmp_path):
    processor = AutoProcessor.from_pretrained(Path(lengths.__file__).parents[1] / "assets/tiny-vlbart")
    answers = ["red", "red " * 2 * processor.tokenizer.model_max_length]
    path = records(tmp_path / "a.jsonl", "which?", "which?", answers=answers)
    with pytest.raises(MmdoraError, match=r"record r1: its answer has .* tokens; this model writes at most"):
        fit(read_records(path), family_of(processor), None, "error")
