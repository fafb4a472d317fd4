"""One budget of image tokens for every family: counted on real pictures, kept in files, refused where it must be."""

import json

import numpy as np
import processors
import pytest
import torch
from families import checkpoints
from PIL import Image
from shrunken import ROPE, TEXT, shrunken
from transformers import AutoProcessor

from mmdora.adapt.inject import inject, trainable_parameters
from mmdora.adapter_files.adapters import save_adapter
from mmdora.config import ImageTokens, RunConfig, validate
from mmdora.errors import MmdoraError
from mmdora.export.run import export
from mmdora.models import image_tokens as room
from mmdora.models.image_tokens import set_image_tokens, write_image_tokens
from mmdora.models.load import load, load_processor

PICTURES = [(40, 30), (64, 64), (90, 200), (300, 150)]  # (height, width)


def tokens_of(processor, size):
    """As a picture of that size is processed, not as the processor foretells it."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))
    text = f"one {processor.image_token} two"
    long = processor(text=[text], images=[[picture]], return_tensors="pt")["input_ids"].shape[1]
    return long - len(processor.tokenizer(text)["input_ids"]) + 1


@pytest.mark.parametrize(
    ("make", "least", "most"),
    [
        (processors.qwen, None, 40),
        (processors.qwen, 30, 100),
        (lambda: processors.qwen("Qwen2VL"), 30, 100),
        (lambda: processors.qwen("Qwen3VL"), 30, 100),
        (processors.glm, 20, 90),
        (processors.llava_next, None, 2000),
        (processors.llava_next, 1000, None),
        (processors.idefics3, None, 500),
        (processors.internvl, None, 90),
        (processors.internvl, 100, None),
        (processors.pixtral, None, 80),
    ],
)
def test_pictures_keep_to_the_budget(make, least, most):
    processor, untouched = make(), make()
    assert set_image_tokens(processor, ImageTokens(min=least, max=most))
    counts = [tokens_of(processor, size) for size in PICTURES]
    assert (least or 0) <= min(counts) and max(counts) <= (most or max(counts)), counts
    outside = [tokens_of(untouched, size) for size in [*PICTURES, (1200, 1600)]]
    assert min(outside) < (least or 0) or max(outside) > (most or max(outside)), "the budget changes nothing here"


def test_a_fixed_count_is_accepted_where_the_budget_holds_it(tiny_llava):
    processor = AutoProcessor.from_pretrained(tiny_llava)
    before = tokens_of(processor, (40, 30))
    assert set_image_tokens(processor, ImageTokens(min=1, max=before)) == {}
    assert tokens_of(processor, (90, 200)) == before
    with pytest.raises(
        MmdoraError, match=rf"LlavaProcessor cannot keep to min None, max {before - 1}.* {before} tokens"
    ):
        set_image_tokens(processor, ImageTokens(max=before - 1))


def test_what_cannot_be_kept_leaves_the_processor_as_it_was():
    processor = processors.llava_next()
    before = processor.to_dict()
    with pytest.raises(MmdoraError, match="744 to 2928 tokens"):
        set_image_tokens(processor, ImageTokens(max=500))
    assert processor.to_dict() == before


def test_a_minimum_above_the_maximum():
    with pytest.raises(MmdoraError, match="min 9 is more than max 8"):
        validate(RunConfig, {"data": {"image_tokens": {"min": 9, "max": 8}}}, where=lambda key: "test")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small Qwen2.5-VL as a checkpoint."""
    folder, processor = tmp_path_factory.mktemp("base"), processors.qwen()
    words = {"video": "<|video_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    ids = {f"{name}_token_id": processor.tokenizer.convert_tokens_to_ids(word) for name, word in words.items()}
    text = TEXT | ROPE | {"vocab_size": 2100, "bos_token_id": None, "eos_token_id": None}
    model = shrunken("qwen2_5_vl", text_config=text, image_token_id=processor.image_token_id, **ids)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "least", "most"), [("qwen", 30, 40), ("internvl", None, 12)])
def test_adapter_and_export_keep_it(kind, least, most, base, tmp_path):
    """Of a tower that keeps a picture's resolution, and of one that cuts it into tiles."""
    if kind == "internvl":
        checkpoints.make(kind, base := tmp_path / "base")
    budget = ImageTokens(min=least, max=most)
    model, processor = load(base, image_tokens=budget)
    wanted = [tokens_of(processor, size) for size in PICTURES]
    assert min(wanted) >= (least or 1) and max(wanted) <= most
    assert wanted != [tokens_of(load_processor(str(base)), size) for size in PICTURES]
    inject(model, {"language": {"method": "dora", "rank": 2}})
    for _, parameter, _, _ in trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, tmp_path / "adapter", base=str(base), image_tokens=budget)
    _, again = load(tmp_path / "adapter")  # as eval and the page do
    assert [tokens_of(again, size) for size in PICTURES] == wanted
    export(tmp_path / "adapter", tmp_path / "out", parity="tensors", say=lambda line: None)
    stock = AutoProcessor.from_pretrained(tmp_path / "out")
    assert [tokens_of(stock, size) for size in PICTURES] == wanted


@pytest.mark.parametrize("old", [False, True], ids=["processor_config", "preprocessor_config"])
def test_files_of_either_age(old, tmp_path):
    processor = processors.qwen()
    processor.save_pretrained(tmp_path)
    if old:  # as Qwen2.5-VL lies on the hub
        images = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]
        del images["size"]
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(images | {"min_pixels": 64, "max_pixels": 4096}))
        (tmp_path / "processor_config.json").unlink()
    write_image_tokens(tmp_path, set_image_tokens(processor, ImageTokens(min=30, max=40)))
    again = AutoProcessor.from_pretrained(tmp_path)
    assert [tokens_of(again, s) for s in PICTURES] == [tokens_of(processor, s) for s in PICTURES]
    if old:
        assert json.loads((tmp_path / "preprocessor_config.json").read_text())["max_pixels"] == 40 * 64


def test_settings_that_do_not_come_back_are_an_error(tmp_path, monkeypatch):
    processor, untouched = processors.qwen(), processors.qwen()
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr(room.AutoProcessor, "from_pretrained", lambda folder, **_: untouched)
    with pytest.raises(MmdoraError, match="cannot be written into its files"):
        write_image_tokens(tmp_path, set_image_tokens(processor, ImageTokens(max=40)))
