"""Each modality and kind trains at its own rate, and every trainable tensor is in one group."""

import pytest

import mmdora
from mmdora.config import Adapt, Training, validate
from mmdora.train.groups import parameter_groups


@pytest.fixture
def adapt():
    tree = {
        "vision": {"method": "lora", "rank": 2},
        "projector": {"method": "full", "lr": 2e-5, "weight_decay": 0.5},
        "language": {"method": "dora", "rank": 4, "lr": 1e-3, "magnitude_lr": 1e-2},
    }
    return validate(Adapt, tree, where=lambda key: "test")


def test_rates_and_decay(tiny_llava, adapt):
    model, _ = mmdora.load(tiny_llava)
    mmdora.inject(model, adapt)
    groups = {g["name"]: g for g in parameter_groups(model, adapt, Training(lr=3e-4, weight_decay=0.1))}
    rates = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}
    assert rates == {
        "vision/low_rank": (3e-4, 0.1),
        "projector/full": (2e-5, 0.5),
        "projector/full_no_decay": (2e-5, 0.0),
        "language/low_rank": (1e-3, 0.1),
        "language/magnitude": (1e-2, 0.0),
    }
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(p.ndim < 2 for p in groups["projector/full_no_decay"]["params"])


def test_lora_plus_raises_the_rate_of_b_alone(tiny_llava):
    tree = {"language": {"method": "dora", "rank": 4, "lr": 1e-4, "lora_plus_ratio": 16, "weight_decay": 0.1}}
    adapt = validate(Adapt, tree, where=lambda key: "test")
    model, _ = mmdora.load(tiny_llava)
    mmdora.inject(model, adapt)
    groups = {group["name"]: group for group in parameter_groups(model, adapt, Training(lr=1.0))}
    names = {id(parameter): name.rpartition(".")[2] for name, parameter in model.named_parameters()}
    leaves = {name: {names[id(p)] for p in group["params"]} for name, group in groups.items()}
    assert leaves == {
        "language/low_rank": {"lora_A"},
        "language/low_rank_B": {"lora_B"},
        "language/magnitude": {"magnitude"},
    }
    assert groups["language/low_rank_B"]["lr"] == pytest.approx(16 * groups["language/low_rank"]["lr"])
    assert groups["language/low_rank_B"]["weight_decay"] == groups["language/low_rank"]["weight_decay"] == 0.1
    assert groups["language/magnitude"]["lr"] == 1e-4
