"""Boxes as each family was taught to write them, after the picture was resized."""

import json

import processors
import pytest
from PIL import Image

from mmdora.batches.fit import fit
from mmdora.config import Data
from mmdora.config.data import BOX_FORMS, BOX_STYLES
from mmdora.errors import MmdoraError
from mmdora.families import family_of
from mmdora.families.boxes import STYLES, BoxRule
from mmdora.records.boxes import FORMS
from mmdora.records.reader import read_records, write_records

BOX = (0.25, 0.5, 0.75, 1.0)


@pytest.fixture
def records(tmp_path):
    Image.new("RGB", (80, 48), "red").save(tmp_path / "a.png")
    question = [{"type": "image"}, {"type": "text", "text": "Where is it?"}]
    answer = [{"type": "text", "text": "at <box>20, 24, 60, 48</box>"}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    write_records(tmp_path / "train.jsonl", [{"id": "1", "messages": messages, "images": ["a.png"]}])
    return read_records(tmp_path / "train.jsonl")


def answer_of(row):
    return row["messages"][-1]["content"][0]["text"]


def test_pixels_are_those_of_the_resized_picture(records):
    processor = processors.qwen("Qwen2_5_VL", size={"shortest_edge": 64, "longest_edge": 2048})
    row = BoxRule(processor, "pixels").written(records[0])
    grid = processor.image_processor(Image.new("RGB", (80, 48)))["image_grid_thw"][0]
    height, width = (int(side) * processor.image_processor.patch_size for side in grid[1:])
    assert (width, height) != (80, 48)
    wanted = [round(share * side) for share, side in zip(BOX, (width, height) * 2, strict=True)]
    assert answer_of(row) == f"at {wanted}"
    (found,) = BoxRule(processor).found(row, answer_of(row))
    assert found == pytest.approx(BOX, abs=0.5 / min(width, height))


@pytest.mark.parametrize(
    ("to", "text"),
    [
        ("thousand", "[250, 500, 750, 1000]"),
        ("qwen2", "<|box_start|>(250,500),(750,1000)<|box_end|>"),
        ("internvl", "<box>[[250, 500, 750, 1000]]</box>"),
        ("loc", "<loc0512><loc0256><loc1023><loc0768>"),
        ("square", "[0.250, 0.500, 0.750, 0.800]"),
        ("shares", "[0.250, 0.500, 0.750, 1.000]"),
    ],
)
def test_styles(to, text, records):
    rule = BoxRule(processors.qwen(), "pixels", to)
    row = rule.written(records[0])
    assert answer_of(row) == f"at {text}" and answer_of(rule.written(row)) == f"at {text}"
    (found,) = BoxRule(processors.qwen()).found(row, answer_of(row))
    assert found == pytest.approx(BOX, abs=2e-3)


@pytest.mark.parametrize(
    ("make", "text"),
    [(processors.internvl, "<box>[["), (processors.paligemma, "<loc0512>"), (processors.qwen, "[")],
)
def test_a_family_has_its_own_way(make, text, records):
    assert answer_of(BoxRule(make(), "pixels").written(records[0])).startswith(f"at {text}")


def test_a_family_without_a_way_of_its_own_is_told_which_there_are(records):
    with pytest.raises(MmdoraError, match=r"data\.boxes\.to to one of pixels, thousand"):
        BoxRule(processors.gemma3(), "pixels").written(records[0])
    assert BoxRule(processors.gemma3()).written(records[0]) is not None  # Nothing is declared, so nothing is a box.
    with pytest.raises(MmdoraError, match=r"whose size .* does not tell"):
        BoxRule(processors.gemma3(), "pixels", "pixels").written(records[0])


def test_training_learns_the_box_of_the_family(records):
    family = family_of(processors.qwen())
    plain, boxed = (fit(records, family, 512, "error", boxes) for boxes in (None, {"from": "pixels"}))
    labels = family.batch([boxed[0]])["labels"][0]
    learned = family.tokenizer.decode(labels[labels >= 0])
    assert answer_of(boxed[0]) in learned and "<box>" not in learned and "<box>" in answer_of(plain[0])
    assert boxed.lengths[0] == len(labels) and boxed.records.fingerprint != plain.records.fingerprint


def test_the_config_knows_the_same_words():
    assert (FORMS, tuple(STYLES)) == (BOX_FORMS, BOX_STYLES)
    with pytest.raises(ValueError, match="boxes: from: 'cm' is none of pixels, relative"):
        Data(boxes={"from": "cm"})
    assert json.dumps(Data(boxes={"to": "loc"}).boxes) == '{"to": "loc"}'


@pytest.mark.parametrize(
    ("declared", "said"), [({"from": "inches"}, "from: 'inches'"), ({"to": "x"}, "to: 'x'"), ({"as": "x"}, "as: 'x'")]
)
def test_what_is_declared_has_to_be_known(declared, said):
    with pytest.raises(MmdoraError, match=f"boxes: {said} cannot be used"):
        BoxRule.of(processors.qwen(), declared)
