"""Prompts, images and clips to tensors."""

import pytest
import torch
from shrunken_vlbart import picture, small_vlbart
from transformers import AutoProcessor

from mmdora.errors import MmdoraError
from mmdora.models.vlbart.processor import VLBartProcessor, added_tokens


@pytest.fixture(scope="module")
def processor():
    return small_vlbart()[1]


def texts(processor, batch):
    return processor.tokenizer.batch_decode(batch["input_ids"])


def test_prompts_by_task(processor):
    batch = processor(text=["what?", "who?"], task="vqa")
    assert texts(processor, batch) == ["<s>vqa: what?</s>", "<s>vqa: who?</s><pad>"]
    assert batch["attention_mask"].tolist()[1] == [1] * 11 + [0]
    mixed = processor(text=["", "who?", "the left one", "{} a"], task=["caption", "tvqa", None, "gqa"])
    assert [text.replace("<pad>", "") for text in texts(processor, mixed)] == [
        "<s>caption: </s>",
        "<s>who? tvqa: </s>",
        "<s>the left one</s>",
        "<s>gqa: {} a</s>",
    ]
    for task in ("nlvr", "how2qa", "tvc", "yc2c"):
        assert task + ": " in processor.prompt("x", task)


def test_prompts_can_be_spelt_otherwise_and_are_saved(processor, tmp_path):
    theirs = VLBartProcessor(processor.image_processor, processor.tokenizer, frames=5, prompts={"gqa": "gpa: {}"})
    theirs.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is VLBartProcessor
    assert loaded.prompt("a?", "gqa") == "gpa: a?" and loaded.prompt("a?", "vqa") == "vqa: a?"
    assert loaded.frames == 5 and loaded.chat_template == theirs.chat_template
    inputs = {"text": ["what?", "a"], "images": [[picture(1), picture(2)], []], "task": "vqa"}
    before, after = theirs(**inputs), loaded(**inputs)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_images_per_sample(processor):
    one, two = picture(1), picture(2)
    alone = processor(text="a", images=one)
    assert alone["pixel_values"].shape == (1, 1, 3, 64, 64) and alone["image_mask"].tolist() == [[1]]
    pair = processor(text="a", images=[one, two])
    assert pair["pixel_values"].shape == (1, 2, 3, 64, 64) and pair["image_mask"].tolist() == [[1, 1]]
    flat = processor(text=["a", "b"], images=[one, two])
    assert flat["pixel_values"].shape == (2, 1, 3, 64, 64)
    mixed = processor(text=["a", "b", "c"], images=[[one, two], None, [two]])
    assert mixed["image_mask"].tolist() == [[1, 1], [0, 0], [1, 0]]
    assert torch.equal(mixed["pixel_values"][0], pair["pixel_values"][0])
    assert torch.equal(mixed["pixel_values"][2, 0], flat["pixel_values"][1, 0])
    assert mixed["pixel_values"][1].abs().max() == 0
    assert "pixel_values" not in processor(text=["a", "b"], images=[[], []])


def test_features(processor):
    clip, short, grids = torch.randn(9, 64), torch.randn(2, 64), torch.randn(2, 4, 64)
    batch = processor(text=["a", "b", "c"], features=[clip, short.numpy(), None])
    assert batch["visual_features"].shape == (3, 1, 6, 64)  # this processor's clips have 6 frames
    assert batch["image_mask"].tolist() == [[1], [1], [0]]
    assert torch.equal(batch["visual_features"][1, 0, :2], short)
    assert torch.equal(batch["visual_features"][0].amax((0, 1)), clip.amax(0))
    images = processor(text=["a", "b"], features=[grids, grids[:1]])
    assert images["visual_features"].shape == (2, 2, 4, 64) and images["image_mask"].tolist() == [[1, 1], [1, 0]]
    assert processor(text="a", features=clip)["visual_features"].shape == (1, 1, 6, 64)


def test_conversations_become_the_encoders_text(processor):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "vqa: what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    assert processor.apply_chat_template(messages) == "vqa: what?"
    assert processor.apply_chat_template([{"role": "user", "content": "hello"}]) == "hello"


def test_mistakes(processor):
    image = picture(1)
    for problem, inputs in {
        "unknown task 'vqs'.*vqa": {"text": "a", "task": "vqs"},
        "pads on the right": {"text": "a", "padding_side": "left"},
        "needs a text": {"images": image},
        "3 images; this model takes at most 2": {"text": "a", "images": [image] * 3},
        "3 images; this model takes": {"text": "a", "features": torch.zeros(3, 4, 64)},
        "2 texts but 1 images": {"text": ["a", "b"], "images": [image]},
        "2 texts but 1 tasks": {"text": ["a", "b"], "task": ["vqa"]},
        "1 texts but 2 features": {"text": ["a"], "features": [None, None]},
        "must have the same shape": {"text": ["a", "b"], "features": [torch.zeros(1, 4, 64), torch.zeros(1, 5, 64)]},
    }.items():
        with pytest.raises(MmdoraError, match=problem):
            processor(**inputs)


def test_added_tokens_count_from_the_end():
    tokens = added_tokens()
    assert len(tokens) == 200
    assert (tokens[0], tokens[99], tokens[100], tokens[-1]) == (
        "<extra_id_99>",
        "<extra_id_0>",
        "<vis_extra_id_99>",
        "<vis_extra_id_0>",
    )
