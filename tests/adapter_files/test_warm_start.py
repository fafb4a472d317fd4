"""Training goes on with an adapter: `adapt.M.from`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from shrunken import llava_inputs, shake, shrunken_llava

import mmdora
from mmdora.adapt import inject as injecting
from mmdora.adapt.inject import adapted_modules
from mmdora.config import config_of, load_config
from mmdora.errors import MmdoraError

TRAINED = {
    "vision": {"method": "lora", "rank": 4, "targets": ["patch_embedding", "q_proj"]},
    "projector": {"method": "dora", "rank": 2},
    "language": {"method": "lora", "rank": 8, "rslora": True, "targets": ["embed_tokens", "all"]},
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**llava_inputs()).logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """An adapter with LoRA and DoRA, and the logits of its model."""
    folder, model = tmp_path_factory.mktemp("adapter"), shrunken_llava()
    mmdora.inject(model, TRAINED)
    shake(model)
    mmdora.save_adapter(model, folder)
    return folder, logits(model)


def going_on(folder: Path, **changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: {**how, "from": str(folder), **changes.get(name, {})} for name, how in TRAINED.items()}


def test_a_trained_lora_goes_on_as_dora_with_equal_logits(trained: tuple[Path, torch.Tensor]) -> None:
    folder, before = trained
    model = shrunken_llava()
    plan = mmdora.inject(model, going_on(folder, vision={"method": "dora"}, language={"method": "dora"}))
    assert {entry.method for entry in plan.entries} == {"dora"}
    assert (logits(model) - before).abs().max() <= 1e-6 * before.abs().max()
    for module in adapted_modules(model).values():
        assert module.magnitude is not None and module.magnitude.requires_grad and module.lora_A is not None
        start = module.matrix(module.base_weight).flatten(1).norm(dim=1)
        assert not torch.allclose(module.magnitude, start), "m is not that of W0, but of W0 + s B A"
    model.train()(**llava_inputs()).logits.square().mean().backward()
    assert all(module.magnitude.grad is not None for module in adapted_modules(model).values())  # pyright: ignore


def test_an_adapter_goes_on_by_its_own_methods_with_equal_logits(trained: tuple[Path, torch.Tensor]) -> None:
    folder, before = trained
    model = shrunken_llava()
    mmdora.inject(model, going_on(folder))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"language": {"rank": 4}}, "adapt.language.from: .* has rank 8 and scaling .* and this config rank 4"),
        ({"language": {"rslora": False}}, "and scaling 2; give adapt.language its rank, alpha and rslora"),
        ({"vision": {"targets": ["q_proj"]}}, "adapts .*patch_embedding, unlike this config; give adapt.vision its"),
        (
            {"vision": {"targets": [*TRAINED["vision"]["targets"], "k_proj"]}},
            "does not adapt .*k_proj, unlike this config; give adapt",
        ),
        ({"projector": {"method": "lora"}}, "was trained by dora, whose magnitudes LoRA has not; use method: dora"),
        ({"language": {"from": "nowhere"}}, "adapt.language.from: nowhere: no adapter here"),
        ({"language": {"method": "magnitude"}}, "and method magnitude has none"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line_and_the_model_is_untouched(
    changes: dict[str, Any], said: str, trained: tuple[Path, torch.Tensor]
) -> None:
    model = shrunken_llava()
    with pytest.raises(MmdoraError, match=said):
        mmdora.inject(model, going_on(trained[0], **changes))
    assert not adapted_modules(model)


def test_parts_that_the_adapter_trained_in_full_are_not_lost_silently(tmp_path: Path) -> None:
    model = shrunken_llava()
    mmdora.inject(model, {"language": {"method": "lora", "norms": True}})
    mmdora.save_adapter(model, tmp_path)
    with pytest.raises(MmdoraError, match=r"has trained .*norm.* in full, which this config would lose"):
        mmdora.inject(shrunken_llava(), {"language": {"method": "dora", "from": str(tmp_path)}})


def test_the_inject_that_reads_no_adapters_refuses_one(trained: tuple[Path, torch.Tensor]) -> None:
    with pytest.raises(MmdoraError, match=r"adapt.vision.from: call mmdora.inject"):
        injecting.inject(shrunken_llava(), going_on(trained[0]))


def test_the_key_is_written_and_read_under_its_name(tmp_path: Path) -> None:
    config = config_of({"adapt": {"language": {"method": "dora", "from": "runs/lora"}}})
    config.save(tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["adapt"]["language"]["from"] == "runs/lora"
    assert load_config(tmp_path / "config.yaml").adapt == config.adapt
    (tmp_path / "config.yaml").write_text("adapt: {language: {method: dora, form: x}}")
    with pytest.raises(MmdoraError, match="did you mean 'from'"):
        load_config(tmp_path / "config.yaml")
