"""From the `adapt` section to what trains: plans, freezing, merging."""

import json
import re

import pytest
import torch
from shrunken import llava_inputs, shake, shrunken_llava
from torch import nn

from mmdora.adapt.inject import adapted_modules, inject, make_plan, merge, plan_of, trainable_parameters, unload
from mmdora.adapt.plan import Plan
from mmdora.adapter_files.adapters import save_adapter
from mmdora.config import Adapt, Modality
from mmdora.errors import MmdoraError

EXAMPLE = {
    "vision": {"method": "dora", "rank": 4},
    "projector": {"method": "full"},
    "language": {"method": "lora", "rank": 8, "alpha": 16, "targets": ["attention", "mlp"]},
}


def logits(model):
    with torch.no_grad():
        return model(**llava_inputs()).logits


def test_example_plan_counts_and_prints():
    model = shrunken_llava()
    base = sum(p.numel() for p in model.parameters())
    plan = inject(model, EXAMPLE)
    trainable = {name: p.numel() for name, p, _, _ in trainable_parameters(model)}
    assert set(trainable) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert plan.trainable == sum(trainable.values())
    assert plan.total == sum(p.numel() for p in model.parameters()) > base
    by = {row.modality: row for row in plan.by_modality()}
    # Two layers of six linears run in the tower; the third is behind vision_feature_layer -2.
    assert (by["vision"].modules, by["vision"].method, by["vision"].rank) == (12, "dora", "4")
    assert by["vision"].trainable == 2 * (4 * (4 * 32 + 16) + (4 * 48 + 32) + (4 * 48 + 16))
    assert (by["projector"].modules, by["projector"].method, by["projector"].share) == (2, "full", 1.0)
    assert by["language"].modules == 14
    text = str(plan)
    assert re.search(r"vision +dora +12 +4 +2,016 ", text) and "vision_feature_layer is -2" in text
    assert len({len(line.rstrip()) for line in text.splitlines()[:5]}) == 1


def test_the_plan_says_why_each_module_is_adapted(tmp_path):
    """By role, name and pattern, grouped, in lines that fit a terminal; a file of it says the same."""
    targets = ["embed_tokens", "q_proj", "attention", "*.1.mlp.*"]
    language = {"method": "dora", "rank": 4, "targets": targets}
    model = shrunken_llava()
    plan = inject(model, {"vision": {"method": "lora", "rank": 2}, "language": language})
    because = {entry.name.removeprefix("model.language_model."): entry.because for entry in plan.entries}
    assert because["embed_tokens"] == "name, of targets: embed_tokens"
    assert because["layers.0.self_attn.q_proj"] == "name, of targets: q_proj"  # the first target that means it
    assert because["layers.0.self_attn.k_proj"] == "role attention, of targets: attention"
    assert because["layers.1.mlp.up_proj"] == "pattern, of targets: *.1.mlp.*"
    text = str(plan)
    flat = " ".join(text.split())
    assert "vision: 8 modules by role attention, of targets: all (k_proj, v_proj, q_proj, out_proj)" in flat
    assert "language: 6 modules by role attention, of targets: attention (k_proj, v_proj, o_proj)" in flat
    assert "language: 1 module by name, of targets: embed_tokens (embed_tokens)" in flat
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("note: "))
    save_adapter(model, tmp_path)
    written = json.loads((tmp_path / "mmdora.json").read_text())
    assert written["why"] == plan.reasons() == Plan.from_dict(written["plan"]).reasons()


def test_kinds_and_modalities_of_trainable_parameters():
    model = shrunken_llava()
    inject(model, EXAMPLE)
    found = {(modality, kind) for _, _, modality, kind in trainable_parameters(model)}
    assert found == {
        ("vision", "low_rank"), ("vision", "magnitude"), ("projector", "full"), ("language", "low_rank"),
    }  # fmt: skip


@pytest.mark.parametrize("method", ["lora", "dora", "magnitude", "full"])
def test_starts_as_the_base(method):
    model = shrunken_llava()
    before = logits(model)
    inject(model, {modality: {"method": method} for modality in ("vision", "projector", "language")})
    torch.testing.assert_close(logits(model), before, rtol=1e-6, atol=1e-6)


def test_config_and_dict_give_the_same_plan():
    adapt = Adapt(language=Modality(method="dora", targets=("q_proj",)))
    assert make_plan(shrunken_llava(), adapt) == make_plan(
        shrunken_llava(), {"language": {"method": "dora", "targets": "q_proj"}}
    )


def test_plan_survives_json_and_planning_touches_nothing():
    model = shrunken_llava()
    plan = make_plan(model, EXAMPLE)
    assert plan_of(model) is None and not adapted_modules(model) and all(p.requires_grad for p in model.parameters())
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_rank_alpha_and_rslora():
    entry = make_plan(shrunken_llava(), {"vision": {"method": "lora"}}).entries[0]
    assert (entry.rank, entry.alpha, entry.scaling) == (8, 16.0, 2.0)
    entry = make_plan(shrunken_llava(), {"language": {"method": "lora", "rslora": True}}).entries[0]
    assert (entry.rank, entry.alpha, entry.scaling) == (16, 32.0, 8.0)


def test_dropout_mode_is_kept_and_noted():
    language = {"method": "dora", "dropout": 0.1, "dropout_mode": "reference"}
    plan = make_plan(shrunken_llava(), {"vision": {"method": "dora"}, "language": language})
    assert {e.modality: e.dropout_mode for e in plan.entries} == {"vision": "branch", "language": "reference"}
    assert "note: language: dropout_mode is reference" in str(plan)
    with pytest.raises(MmdoraError, match=r"language\.dropout_mode"):
        make_plan(shrunken_llava(), {"language": {"method": "dora", "dropout_mode": "peft"}})


def test_experts_are_noted():
    model = shrunken_llava()
    mlp = model.model.language_model.layers[0].mlp
    mlp.experts = nn.Module()
    mlp.experts.down_proj = nn.Parameter(torch.zeros(4, 24, 40))
    plan = make_plan(model, {"language": {"method": "lora", "targets": ["mlp"]}})
    assert any("experts" in note and "layers.0.mlp.experts" in note for note in plan.notes)


def test_refusals():
    model = shrunken_llava()
    for section, message in [
        ({}, "nothing would be trained"),
        ({"vision": {"method": "full", "targets": ["mlp"]}}, "leave targets out"),
        ({"vision": {"method": "lore"}}, "vision.method"),
        ({"sight": {"method": "lora"}}, "sight"),
    ]:
        with pytest.raises(MmdoraError, match=message):
            make_plan(model, section)
    inject(model, EXAMPLE)
    with pytest.raises(MmdoraError, match="already adapted"):
        inject(model, EXAMPLE)


def test_adapted_first_layers_are_really_used():
    """A gradient reaches B of CLIP's convolution and embedding, and of the language's embedding."""
    model = shrunken_llava()
    targets = {"vision": ["patch_embedding", "position_embedding"], "language": ["embed_tokens"]}
    inject(model, {modality: {"method": "dora", "targets": names} for modality, names in targets.items()})
    shake(model)
    before = logits(model)
    model(**llava_inputs()).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for _, p, _, _ in trainable_parameters(model))
    merge(model)
    assert (logits(model) - before).abs().max() / before.abs().max() <= 1e-5


def test_merge_equals_adapted_and_is_plain():
    model = shrunken_llava()
    classes = {name: type(module) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    inject(model, EXAMPLE)
    shake(model)
    adapted = logits(model)
    assert merge(model) is model and plan_of(model) is None
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert list(model.state_dict()) == keys and all(p.requires_grad for p in model.parameters())
    assert (logits(model) - adapted).abs().max() / adapted.abs().max() <= 1e-5


def test_merge_into_bf16_rounds_the_fp32_weight_once():
    model = shrunken_llava()
    inject(model, EXAMPLE)
    shake(model)
    exact = {name: module.merged_weight() for name, module in adapted_modules(model).items()}
    merge(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(model.get_parameter(f"{name}.weight"), w.bfloat16()) for name, w in exact.items())


def test_unload():
    model = shrunken_llava()
    before = logits(model)
    inject(model, {"language": {"method": "dora"}})
    shake(model)
    assert not torch.allclose(logits(model), before)
    assert torch.equal(logits(unload(model)), before)
    inject(model, EXAMPLE)
    with pytest.raises(MmdoraError, match="trained in full"):
        unload(model)


@pytest.mark.parametrize(("bias", "norms"), [(True, False), (False, True), (True, True)])
def test_biases_and_norms_of_a_modality_train_beside_its_adapters(bias, norms):
    model = shrunken_llava()
    layer_norms = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    tower = [name for name, _ in model.named_parameters() if "vision_tower" in name and ".layers.2." not in name]
    wanted = {name for name in tower if bias and name.endswith("bias")}
    wanted |= {name for name in tower if norms and name.endswith("weight") and name.startswith(tuple(layer_norms))}
    plan = inject(model, {"vision": {"method": "dora", "rank": 4, "bias": bias, "norms": norms}})
    assert set(plan.full) == wanted and len(wanted) > 4
    assert f"dora+{len(wanted)} tensors" in str(plan)
    model(**llava_inputs()).logits.square().sum().backward()
    assert all(model.get_parameter(name).grad is not None or "post_layernorm" in name for name in wanted)
    before = logits(model.eval())
    torch.testing.assert_close(logits(merge(model)), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        ({"language": {"method": "full", "bias": True}}, "trains biases and norms already"),
        ({"language": {"method": "lora", "bias": True}}, "adapt.language.bias: the language part has no bias"),
        ({"projector": {"norms": True}}, "adapt.projector.norms: the projector part has no norm"),
    ],
)
def test_biases_and_norms_that_are_not_there(adapt, message):
    with pytest.raises(MmdoraError, match=message):
        make_plan(shrunken_llava(), adapt)


def test_widths_that_torch_computed_become_numbers():
    """Inkling's tower computes the widths of its layers by torch, so they are tensors."""
    model = shrunken_llava()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            vars(module)["out_features"] = torch.tensor(module.out_features)
    plan = make_plan(model, EXAMPLE)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == make_plan(shrunken_llava(), EXAMPLE)
