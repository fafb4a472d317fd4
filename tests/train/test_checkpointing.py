"""Activations are computed again for the modalities that the config names, and what is learned is the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import config_for, first_turns, same_tensors, silent
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.llama.modeling_llama import LlamaMLP

from mmdora.adapt.inject import make_plan
from mmdora.errors import MmdoraError
from mmdora.families import family_of
from mmdora.models.base import skeleton
from mmdora.models.load import load_processor
from mmdora.train import train
from mmdora.train.memory import estimate, typical_batch

ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Part -> how often its first MLP has computed since."""
    counts = Counter[str]()
    for part, kind in (("vision", CLIPMLP), ("language", LlamaMLP)):

        def counted(self: Any, *given: Any, part: str = part, forward: Any = kind.forward) -> Any:
            counts[part] += torch.is_grad_enabled()
            return forward(self, *given)

        monkeypatch.setattr(kind, "forward", counted)
    return counts


def test_only_what_was_named_computes_again(scene_records: Path, tmp_path: Path, forwards: Counter[str]) -> None:
    rows, found, runs = first_turns(scene_records, 4), {}, {}
    for what in (False, True, ("language",), ("vision",)):
        forwards.clear()
        options: dict[str, Any] = {"steps": 1, "accumulation": 1, "gradient_checkpointing": what, "save_every": None}
        runs[what] = train(config_for(rows, tmp_path / str(what), evaluates=False, **options), say=silent)
        found[what] = (forwards["vision"], forwards["language"])
    vision, language = found[False]
    assert found[True] == (2 * vision, 2 * language)
    assert found["language",] == (vision, 2 * language)
    assert found["vision",] == (2 * vision, language)
    for run in runs.values():
        assert same_tensors(run / ADAPTER, runs[False] / ADAPTER)


def test_the_estimate_knows_it(scene_records: Path, tmp_path: Path) -> None:
    model, batch, held = skeleton("tiny-llava"), None, {}
    config = config_for(scene_records, tmp_path, evaluates=False)
    for what in (False, True, ("language",)):
        config = replace(config, training=replace(config.training, gradient_checkpointing=what))
        batch = batch or typical_batch(family_of(load_processor("tiny-llava")), config)
        held[what] = estimate(model, make_plan(model, config.adapt), config, batch).peak
    assert held[True] < held["language",] < held[False]


def test_a_part_that_cannot(scene_records: Path, tmp_path: Path) -> None:
    """tiny-vlbart's tower is a ResNet."""
    config = config_for(scene_records, tmp_path, evaluates=False, gradient_checkpointing=("vision",))
    config = replace(config, adapt=replace(config.adapt, vision=replace(config.adapt.vision, method="none")))
    model = skeleton("tiny-vlbart")
    batch = typical_batch(family_of(load_processor("tiny-vlbart")), config)
    with pytest.raises(MmdoraError, match=r"gradient_checkpointing: vision has no layers .*these parts have: language"):
        estimate(model, make_plan(model, config.adapt), config, batch)
