"""The bundled tiny-vlbart: its size, its kind of BART, and that it sees; and how its tower is taught."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

import mmdora
from mmdora.data_prep.scenes import COLOURS, SHAPES, Thing, tasks
from mmdora.data_prep.scenes.clips import DIRECTIONS
from mmdora.models.locate import ASSETS
from mmdora.models.open_clip.tower import OpenClipVisionModel, tower_config
from mmdora.pretrain.tiny_vlbart import ORDER, READ, TOWER
from mmdora.pretrain.tiny_vlbart_tower import READ as CHANNELS
from mmdora.pretrain.tiny_vlbart_tower import Reader, labels, score

FOLDER = ASSETS / "tiny-vlbart"


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return mmdora.load("tiny-vlbart")


def test_it_is_small_and_whole(tiny):
    model, _ = tiny
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_867_256
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6
    assert model.config.vision_config.pretrained is None and model.dtype == torch.float32
    loaded: Any = AutoModelForImageTextToText.from_pretrained(FOLDER, output_loading_info=True)
    found = loaded[1]
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert model.lm_head.weight is model.model.language_model.shared.weight


def test_it_speaks_as_bart_does(tiny):
    model, processor = tiny
    tokenizer, settings = processor.tokenizer, model.generation_config
    for text in ("a red circle", "Ünïcode — 是 \t\n", "<extra>"):
        ids = tokenizer(text)["input_ids"]
        assert (ids[0], ids[-1]) == (model.config.text_config.bos_token_id, model.config.text_config.eos_token_id)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == model.config.text_config.vocab_size == 2048
    assert settings.forced_bos_token_id == tokenizer.bos_token_id and settings.num_beams == 5
    assert settings.decoder_start_token_id == tokenizer.eos_token_id
    longest = max(
        len(tokenizer(reference)["input_ids"])
        for number in range(100)
        for reference in tasks.draw_of("caption", "train", 0, number).asked[0].meta["references"]
    )
    assert longest <= settings.max_new_tokens


def test_it_reads_a_clip_and_never_says_an_order_embedding(tiny):
    model, processor = tiny
    draw = tasks.draw_of("clip-features", "test", 0, 0)
    inputs = processor(text=draw.asked[0].text, features=draw.features, task="tvqa")
    assert inputs["visual_features"].shape == (1, 1, 16, 512)
    said = model.generate(**inputs, num_beams=1)
    assert processor.tokenizer.decode(said[0], skip_special_tokens=True) in {*DIRECTIONS, "it grows", "it shrinks"}
    order = model.get_input_embeddings().weight[-ORDER:].norm(dim=-1)
    assert order.min() > 3 and (model.final_logits_bias[0, -ORDER:] < -100).all()


@pytest.mark.parametrize(
    ("kind", "floor"), [("questions", 0.85), ("places", 0.85), ("pair-questions", 0.7), ("names", 0.7)]
)
def test_it_sees(kind: str, floor: float, tiny):
    model, processor = tiny
    draws = [tasks.draw_of(kind, "test", 0, number) for number in range(40)]
    asked, pictures = [draw.asked[0] for draw in draws], [list(draw.pictures) for draw in draws]
    inputs = processor(images=pictures, text=[one.text for one in asked], task=READ[kind])
    said = processor.tokenizer.batch_decode(model.generate(**inputs, num_beams=1), skip_special_tokens=True)
    assert np.mean([text == one.answer for text, one in zip(said, asked, strict=True)]) > floor


def test_cells_know_what_stands_in_them():
    large, small = Thing("circle", "red", 32, 40, 30, 30), Thing("star", "blue", 5, 6, 10, 10)
    found = labels([large, small], 3)
    shape, colour = 1 + SHAPES.index("circle"), 1 + list(COLOURS).index("red")
    assert found[:2, 1, 1].tolist() == [shape, colour] and found[:2, 2, 1].tolist() == [0, 0]
    assert found[2:4, 2, 1].tolist() == [shape, colour]  # it covers the cell below its centre's
    assert found[4:, 1, 1].tolist() == pytest.approx([1, 0.5, 0.875]) and found[4, 0, 0] == 0
    assert (found[:2] > 0).sum() == 4 and found[4, 2, 2] == -100


def test_the_tower_learns_with_its_batch_norms_and_then_keeps_them():
    tower = OpenClipVisionModel(tower_config(TOWER))
    reader = Reader(tower).train()
    norm: Any = tower.visual.bn1
    before = norm.running_mean.clone()
    truth = torch.from_numpy(np.stack([labels([Thing("star", "blue", 50, 6, 10, 10)], 3)] * 4))
    out = reader(torch.randn(4, 3, 96, 96), truth)
    out["loss"].backward()
    assert not torch.equal(norm.running_mean, before) and tower.visual.conv1.weight.grad.abs().sum() > 0
    assert not tower.train().visual.bn1.training
    assert out["logits"].shape == (4, sum(CHANNELS.values()), 3, 3)


def test_a_perfect_reading_scores_one_and_a_moved_thing_costs_its_cell():
    truth = labels([Thing("star", "blue", 50, 6, 10, 10)], 3)[None]
    logits = np.zeros((1, sum(CHANNELS.values()), 3, 3), np.float32)
    logits[:, 0], logits[:, 6] = 1, 1
    logits[0, 4, 0, 2], logits[0, 6 + 5, 0, 2] = 2, 2
    assert score(logits, truth) == {"shapes": 1, "colours": 1, "things": 1, "cells": 1}
    assert score(logits.swapaxes(2, 3).copy(), truth) == {"shapes": 1, "colours": 1, "things": 1, "cells": 0}
    logits[0, 4, 0, 2] = 0
    assert score(logits, truth) == {"shapes": 0, "colours": 1, "things": 0, "cells": 0}


def test_its_towers_scores_stand_in_its_card():
    scores = json.loads((FOLDER / "tower.json").read_text(encoding="utf-8"))
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"{scores[name]:.1%}" in card for name in ("shapes", "colours", "things"))
