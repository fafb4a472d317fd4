"""What is kept between calls: one look at the device per step for all layers, and the cast factors in eval."""

from collections.abc import Iterator

import pytest
import torch
from layer_cases import Dense, adapted, inputs, make, max_rel, shake
from scale_cases import DATA_WRITES, WRITES, Tower, losses
from torch import nn

from mmdora.layers import kept, scales
from mmdora.ops import linear


@pytest.fixture
def looks(monkeypatch) -> Iterator[list[int]]:
    """As on a GPU, where reading a value waits for the device: how many c each look was at."""
    others = dict(kept.known)  # The layers that other tests still hold would be among those that learn.
    kept.known.clear()
    counts, original = [], linear.small
    monkeypatch.setattr(linear, "small", lambda factors: counts.append(len(factors)) or original(factors))
    monkeypatch.setattr(kept, "_waits", lambda device: True)
    yield counts
    kept.known.update(others)


def test_one_look_at_the_device_per_step(looks, norms):
    tower, frozen, answering = Tower(), Tower().requires_grad_(False), Tower().eval()
    losses(tower, tower)
    magnitudes = sum(name.endswith("magnitude") for name, _ in tower.named_parameters())
    assert looks == [magnitudes] * 3 and len(norms) == 3 * 4  # a magnitude alone has no norm to compute
    del frozen, answering


def test_what_a_look_for_all_says_of_each(looks):
    first, second = adapted(nn.Linear(6, 5), "dora"), adapted(nn.Linear(6, 5), "dora")
    second.magnitude.data[2] = 1e-6
    x = torch.randn(3, 6)
    first(x)
    assert looks == [2]
    assert [scales.current(layer).keep for layer in (first, second)] == [False, True]  # pyright: ignore
    second.magnitude.data[2] = 1.0
    second.refresh()
    second.eval()
    assert not scales.current(second).keep and looks == [2, 1]  # pyright: ignore


FACTOR_WRITES = {
    name: write
    for name, write in WRITES.items()
    if not name.startswith("base") and name not in ("replaced", "AdamW compiled")
}


@pytest.fixture
def casts(monkeypatch) -> list[int]:
    """One element for each time that A and B are cast to be kept."""
    made, original = [], kept.Scales.factors

    def watched(self, *args):
        before = self._factors
        found = original(self, *args)
        if self._factors is not before:
            made.append(1)
        return found

    monkeypatch.setattr(kept.Scales, "factors", watched)
    return made


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_tokens_in_eval_cast_the_factors_once(method, casts):
    _, layer = make("linear", method)
    shake(layer)
    layer.eval()
    x = inputs("linear").bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first = [layer(x) for _ in range(3)]
        learning = layer.train()(x)
    assert len(casts) == 1 and all(torch.equal(y, first[0]) for y in first)
    assert max_rel(first[0].float(), learning.float()) <= 2**-7


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("write", FACTOR_WRITES.values(), ids=FACTOR_WRITES)
def test_the_kept_factors_see_every_write(method, write):
    _, layer = make("linear", method)
    shake(layer)
    layer.eval()
    x = inputs("linear").bfloat16()
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            layer(x)
        write(layer)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            y = layer(x).float()
        assert max_rel(y, Dense(layer)(x.float())) <= 2**-6


@pytest.mark.parametrize(
    "write", [DATA_WRITES[name] for name in ("copy", "moving average", "own optimizer", "foreach")]
)
def test_the_kept_factors_see_a_write_through_data(write):
    _, layer = make("linear")
    shake(layer)
    layer.eval()
    x = inputs("linear").bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(x)
        write(layer)
        y = layer(x).float()
    assert max_rel(y, Dense(layer)(x.float())) <= 2**-6
