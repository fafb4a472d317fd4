"""A sample of `make zoo`: a few architectures, and what it would say of an adapter that does something else."""

from __future__ import annotations

import pytest
from families.zoo.check import ALL, FailedError, check, peft_works, takes
from families.zoo.small import ARCHITECTURES, build

from mmdora.layers import AdaptedLinear


@pytest.mark.parametrize(("name", "compared"), [("llava", "words, pictures"), ("aya_vision", "words, pictures")])
def test_each_part_alone_and_all(name: str, compared: str) -> None:
    model = build(name)
    assert takes(model) == compared
    layers = check(model)
    assert layers[ALL] == sum(count for part, count in layers.items() if part != ALL) and min(layers.values()) > 0
    peft_works(model)


def test_a_merge_that_forgets_the_adapter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdaptedLinear, "merged_weight", lambda self: self.base_weight.detach().clone())
    with pytest.raises(FailedError, match="merged: differs by"):
        check(build("llava"))


def test_every_architecture_of_the_registry_is_tried() -> None:
    """transformers 5.17 has 85, 5.24 has 98."""
    assert len(ARCHITECTURES) == len(set(ARCHITECTURES)) >= 85
