"""Adapters switched on one base, against each of them loaded on its own and merged."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

import mmdora
from mmdora.adapt.inject import trainable_parameters
from mmdora.adapt.switch import adapters_of
from mmdora.demo.columns import load_columns
from mmdora.demo.compare import answer
from mmdora.demo.shared_base import SharedBase
from mmdora.demo.turns import AnswerSettings, new_turn
from mmdora.errors import MmdoraError
from mmdora.models.locate import locate

PICTURE = Image.effect_noise((64, 64), 90).convert("RGB")
PLANS = {
    "lora": {"language": {"method": "lora", "rank": 4}},
    "dora": {
        "vision": {"method": "dora", "rank": 2, "bias": True},
        "projector": {"method": "full"},
        "language": {"method": "dora", "rank": 4, "norms": True},
    },
}


@pytest.fixture(scope="module")
def adapters(tiny_llava, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, plan) in enumerate(PLANS.items()):
        model, _ = mmdora.load("tiny-llava")
        mmdora.inject(model, plan)
        torch.manual_seed(seed)
        with torch.no_grad():
            for _, parameter, _, _ in trainable_parameters(model):
                parameter.add_(0.05 * torch.randn_like(parameter))
        mmdora.save_adapter(model, folder / name)
    return folder


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.fixture(scope="module")
def inputs(tiny_llava):
    _, processor = mmdora.load("tiny-llava")
    text = "USER: <image> what is it? ASSISTANT:"
    return processor(text=text, images=PICTURE, return_tensors="pt")


def test_switching_gives_what_each_gives_alone(adapters, inputs, tiny_llava):
    base = SharedBase(*mmdora.load("tiny-llava"))
    worn = {name: base.add(locate(adapters / name)) for name in PLANS}
    expected: dict[str | None, torch.Tensor] = {
        None: logits(AutoModelForImageTextToText.from_pretrained(tiny_llava), inputs)
    }
    for name in PLANS:
        model, _ = mmdora.load(adapters / name)
        expected[name] = logits(mmdora.merge(model), inputs)
    assert not torch.allclose(expected["lora"], expected["dora"], atol=1e-2)
    for name in (None, "lora", "dora", "lora", None, "dora", None):
        base.wear(worn[name] if name else None)
        torch.testing.assert_close(logits(base.model, inputs), expected[name], rtol=1e-4, atol=1e-4)
    own = AutoModelForImageTextToText.from_pretrained(tiny_llava).state_dict()
    assert own.keys() == base.model.state_dict().keys()
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(tensor, own[name]), f"{name} of the base was changed"


def test_the_base_is_held_once(adapters):
    base = SharedBase(*mmdora.load("tiny-llava"))
    storages = {p.data_ptr() for p in base.model.parameters()}
    worn = base.add(locate(adapters / "lora"))
    base.wear(worn)
    new = sum(p.nbytes for p in base.model.parameters() if p.data_ptr() not in storages)
    assert new == adapters_of(base.model)[worn].nbytes < 0.2 * sum(p.nbytes for p in base.model.parameters())
    assert storages <= {p.data_ptr() for p in base.model.parameters()}


def test_columns_answer_as_merged_ones_do(adapters, tmp_path):
    specs = ["base=tiny-llava", *(f"{name}={adapters / name}" for name in PLANS)]
    shared = load_columns(specs, shared_base=True, say=lambda _: None)
    merged = [specs[0]]
    for name in PLANS:
        model, processor = mmdora.load(adapters / name)
        mmdora.merge(model)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        merged.append(f"{name}={tmp_path / name}")
    apart = load_columns(merged, say=lambda _: None)
    texts = []
    for columns in (shared, apart):
        for settings in (AnswerSettings(max_tokens=16), AnswerSettings(max_tokens=16, temperature=1.0, seed=3)):
            *_, last = answer(columns, [new_turn(columns, "what is it?", settings)], [PICTURE])
            texts.append([state.text for state in last])
    assert texts[:2] == texts[2:] and texts[0][0] != texts[0][2]
    assert "shared base" in shared[2].kind and "shared" not in shared[0].kind


def test_another_base_and_no_adapter_are_refused(adapters, tiny_llava):
    model, processor = mmdora.load("tiny-llava")
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight.add_(1)
    with pytest.raises(MmdoraError, match="another base"):
        SharedBase(model, processor).add(locate(adapters / "lora"))
    with pytest.raises(MmdoraError, match="none of the models is an adapter"):
        load_columns(["base=tiny-llava"], shared_base=True)


def test_the_page_scales_every_adapter_and_leaves_the_base(adapters):
    specs = ["base=tiny-llava", *(f"{name}={adapters / name}" for name in PLANS)]
    columns = load_columns(specs, shared_base=True, say=lambda _: None)
    assert [column.scales for column in columns] == [False, True, True]
    texts = {}
    for strength in (1.0, 0.0, 1.0):
        settings = AnswerSettings(max_tokens=12, strength=strength)
        *_, last = answer(columns, [new_turn(columns, "what is it?", settings)], [PICTURE])
        texts.setdefault(strength, []).append([state.text for state in last])
    assert texts[0.0][0] == [texts[1.0][0][0]] * 3 and texts[1.0][0] == texts[1.0][1]
    assert texts[1.0][0][2] != texts[1.0][0][0]
    whole = load_columns(["base=tiny-llava"], say=lambda _: None)
    *_, (told,) = answer(whole, [new_turn(whole, "what?", AnswerSettings(strength=0.5))], [PICTURE])
    assert told.status == "failed" and "--shared-base" in (told.error or "")
