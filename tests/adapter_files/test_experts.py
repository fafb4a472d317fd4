"""Adapters on experts in PEFT's files: ours in PEFT, PEFT's in ours, and the layout of PEFT 0.18."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_cases import CLASSES, EXPERTS, SIZES, adapt, experts, mixture, shake, tokens
from layer_cases import max_rel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import mmdora
from mmdora.adapt.inject import inject
from mmdora.adapter_files.adapters import load_adapter, save_adapter
from mmdora.adapter_files.tensors import to_file
from mmdora.errors import MmdoraError

CASE = pytest.mark.parametrize(
    ("name", "width"), [("qwen3_vl_moe", 8), ("qwen3_vl_moe", 12), ("aria", 8), ("aria", 12)]
)
PREFIX = "base_model.model.model.language_model.layers."


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(**tokens()).logits


@CASE
@pytest.mark.parametrize("targets", [("experts",), ("down_proj", "q_proj"), ("experts", "attention")], ids=str)
def test_peft_reads_ours(name, width, targets, tmp_path):
    model = mixture(name, width)
    inject(model, {"language": {"method": "lora", "rank": 3, "alpha": 5, "dropout": 0.1, "targets": list(targets)}})
    shake(model)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(mixture(name, width), str(tmp_path)).eval()
    assert max_rel(logits(theirs), logits(model.eval())) <= 1e-5


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("width", SIZES.values(), ids=SIZES)
def test_the_tensors_of_a_file_mean_the_same_to_peft(name, width):
    """In all orientations; PEFT does not know that Llama 4's are stored [E, I, O], so it has A and B the other way."""
    module = shake(adapt(experts(name, width), "lora"))
    holder: Any = nn.Module()
    holder.experts = experts(name, width)
    parameters = ["experts.gate_up_proj", "experts.down_proj"]
    get_peft_model(holder, LoraConfig(r=4, lora_alpha=8, target_modules=[], target_parameters=parameters))
    for own in reversed(list(module.adapters())):
        theirs = holder.experts if own.leaf == "down_proj" else holder.experts.base_layer
        assert theirs.parameter_name == own.leaf
        found = to_file(own, magnitude=False)
        with torch.no_grad():
            for key in ("lora_A", "lora_B"):
                assert getattr(theirs, key)["default"].weight.shape == found[f"{key}.weight"].shape
                getattr(theirs, key)["default"].weight.copy_(found[f"{key}.weight"])
        assert max_rel(theirs.get_delta_weight("default"), own.merged_weight() - own.base_weight) <= 1e-5


def pefts(name: str, width: int, folder: Path, *parameters: str, **options: Any) -> Any:
    """Write an adapter of PEFT, and give back the model."""
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj"], target_parameters=list(parameters), **options)
    theirs = get_peft_model(mixture(name, width), config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "lora_" in key:
                parameter.normal_(std=0.3)
    theirs.save_pretrained(str(folder))
    return theirs


@CASE
@pytest.mark.filterwarnings("ignore:.*carries no fingerprint")
@pytest.mark.parametrize("parameters", [("experts.gate_up_proj", "experts.down_proj"), ("experts.down_proj",)], ids=len)
def test_ours_read_pefts(name, width, parameters, tmp_path):
    theirs = pefts(name, width, tmp_path, *parameters, alpha_pattern={"experts.down_proj": 2})
    model = mixture(name, width)
    plan = load_adapter(model, tmp_path)
    assert {e.name.rpartition(".")[2]: e.scaling for e in plan.entries if e.kind == "experts"}["down"] == 2 / 3
    assert max_rel(logits(model), logits(theirs)) <= 1e-5


def as_018(folder: Path, version: str | None, rank: int = 3) -> dict[str, torch.Tensor]:
    """Write the adapter of `pefts` on qwen3_vl_moe as PEFT 0.18 lays it out; gives back the change of each parameter.

    There `lora_A` is [E R, D1] and `lora_B` [D2, R E] for a parameter [E, D1, D2], and the change is
    einsum("o r e, e r i -> e i o", B, A) with the experts last in B (`ParamWrapper.get_delta_weight` of 0.18.1).
    """
    found, changes = load_file(folder / "adapter_model.safetensors"), {}
    for key in [key for key in found if "experts" in key and "lora_A" in key]:
        other = key.replace("lora_A", "lora_B")
        found[key], found[other] = found[other].T.contiguous() + 0.1, found[key].T.contiguous()
        a = found[key].reshape(EXPERTS, rank, -1)
        b = found[other].reshape(found[other].shape[0], rank, EXPERTS)
        changes[key.removeprefix(PREFIX)] = torch.einsum("ore,eri->eio", b, a)
    save_file(found, folder / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config.pop("peft_version", None)
    (folder / "adapter_config.json").write_text(json.dumps(config | ({"peft_version": version} if version else {})))
    return changes


@pytest.mark.filterwarnings("ignore:.*carries no fingerprint")
@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize("version", ["0.18.1", None])
@pytest.mark.parametrize(
    "parameters", [("experts.gate_up_proj", "experts.down_proj"), ("experts.gate_up_proj",)], ids=len
)
def test_the_layout_of_peft_018(width, version, parameters, tmp_path):
    """Square matrices (2I = H) fit both layouts; another tensor of the file, or the version, tells which it is."""
    pefts("qwen3_vl_moe", width, tmp_path, *parameters)
    changes = as_018(tmp_path, version)
    base, model = mixture("qwen3_vl_moe", width), mixture("qwen3_vl_moe", width)
    load_adapter(model, tmp_path)
    mmdora.merge(model)
    for layer in range(2):
        for leaf in parameters:
            level = ".base_layer" if len(parameters) == 2 and "gate_up" in leaf else ""
            change = changes[f"{layer}.mlp.experts{level}.lora_A.weight"] * 7 / 3
            place = f"model.language_model.layers.{layer}.mlp.{leaf}"
            assert max_rel(model.get_parameter(place) - base.get_parameter(place), change) <= 1e-5


@pytest.mark.filterwarnings("ignore:.*carries no fingerprint")
def test_tensors_that_target_parameters_does_not_name_are_refused(tmp_path):
    pefts("aria", 8, tmp_path, "experts.gate_up_proj", "experts.down_proj")
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"target_parameters": ["experts.down_proj"]}))
    with pytest.raises(
        MmdoraError, match=r"experts has tensors of 2 adapted parameters, and target_parameters names 1"
    ):
        load_adapter(mixture("aria"), tmp_path)
    path.write_text(json.dumps(config | {"target_parameters": "experts.down_proj"}))
    with pytest.raises(MmdoraError, match="target_parameters: expected a list of names"):
        load_adapter(mixture("aria"), tmp_path)


def test_single_experts_of_transformers_4_are_refused_with_the_way_out(tmp_path):
    pefts("qwen3_vl_moe", 8, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for key, shape in (("lora_A", (3, 8)), ("lora_B", (8, 3))):
        tensors[f"{PREFIX}0.mlp.experts.1.gate_proj.{key}.weight"] = torch.randn(shape)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(MmdoraError, match=r"adapts single experts \(.*\.experts\.1\.gate_proj\).*merge it with peft"):
        load_adapter(mixture("qwen3_vl_moe", 8), tmp_path)


@pytest.mark.filterwarnings("ignore:.*carries no fingerprint")
@pytest.mark.parametrize("width", [8, 12])
def test_tensors_of_a_wrong_size_are_listed(width, tmp_path):
    pefts("qwen3_vl_moe", width, tmp_path, "experts.gate_up_proj")
    found = load_file(tmp_path / "adapter_model.safetensors")
    key = PREFIX + "0.mlp.experts.lora_A.weight"
    for rows in (3, 13):
        save_file(found | {key: found[key][:1].repeat(rows, 1)}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(MmdoraError, match=r"experts\.gate_up\.lora_A\.weight is \(\d+, 24\), not"):
            load_adapter(mixture("qwen3_vl_moe", width), tmp_path)


def test_dora_says_that_peft_has_none(tmp_path):
    model = mixture("aria")
    inject(model, {"language": {"method": "dora", "targets": ["experts"]}})
    with pytest.warns(UserWarning, match="PEFT has no DoRA for the parameters of experts") as said:
        save_adapter(model, tmp_path)
    assert len(said) == 4


@pytest.mark.filterwarnings("ignore:.*PEFT has no DoRA", "ignore:.*carries no fingerprint")
def test_ours_is_read_without_its_own_file_too(tmp_path):
    for method in ("lora", "dora"):
        model = mixture("qwen3_vl_moe", 12)
        inject(model, {"language": {"method": method, "rank": 2, "targets": ["gate_up_proj"]}})
        shake(model)
        save_adapter(model, tmp_path)
        (tmp_path / "mmdora.json").unlink()
        loaded = mixture("qwen3_vl_moe", 12)
        load_adapter(loaded, tmp_path)
        assert max_rel(logits(loaded), logits(model)) <= 1e-6
