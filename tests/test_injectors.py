"""From the `adapt` section to what trains: plans, targets, freezing, merging."""

import json
import re

import pytest
import torch
from shrunken import CONFIGS, llava_inputs, shrunken, shrunken_llava
from torch import nn

from mmdora.config import Adapt, Modality
from mmdora.errors import MmdoraError
from mmdora.injectors import Plan, adapted_modules, inject, make_plan, merge, plan_of, trainable_parameters, unload
from mmdora.modality import find_parts
from mmdora.targets import candidates_of

EXAMPLE = {
    "vision": {"method": "dora", "rank": 4},
    "projector": {"method": "full"},
    "language": {"method": "lora", "rank": 8, "alpha": 16, "targets": ["attention", "mlp"]},
}


def logits(model):
    with torch.no_grad():
        return model(**llava_inputs()).logits


def names(model, section, modality):
    return [e.name for e in make_plan(model, {modality: {"method": "lora", **section}}).entries]


def leaves(model, section, modality):
    return {name.rpartition(".")[2] for name in names(model, section, modality)}


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


def test_names_stay_inside_their_modality():
    model = shrunken_llava()
    assert all(name.startswith("model.language_model.") for name in names(model, {"targets": ["q_proj"]}, "language"))
    assert all(name.startswith("model.vision_tower.") for name in names(model, {"targets": ["q_proj"]}, "vision"))


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (["all"], 14),
        (["attention"], 8),
        (["mlp"], 6),
        (["attention", "q_proj"], 8),
        (["layers.0.*"], 7),
        (["layers.1.self_attn.o_proj"], 1),
        (["model.language_model.layers.0.mlp.up_proj", "k_proj"], 3),
    ],
    ids=str,
)
def test_targets(targets, count):
    assert len(names(shrunken_llava(), {"targets": targets}, "language")) == count


@pytest.mark.parametrize("modality", ["vision", "projector", "language"])
@pytest.mark.parametrize("name", CONFIGS)
def test_all_is_every_linear_that_can_be_adapted(name, modality):
    model = shrunken(name)
    if (name, modality) == ("gemma3", "projector"):  # one loose parameter, no linear
        with pytest.raises(MmdoraError, match="method full trains it whole"):
            make_plan(model, {modality: {"method": "lora"}})
        return
    plan = make_plan(model, {modality: {"method": "lora"}})
    assert {entry.kind for entry in plan.entries} == {"linear"}
    head = model.get_output_embeddings()
    expected = {
        path
        for path, module in model.named_modules()
        if type(module) is nn.Linear and plan.parts.of(path) == modality and module is not head
    }
    left_out = expected - {entry.name for entry in plan.entries}
    unused = {"llava": r"layers\.2\.", "llava_next": r"layers\.2\.", "llava_onevision": r"\.head\."}.get(name)
    if modality == "vision" and unused:
        assert left_out and all(re.search(unused, path) for path in left_out)
    else:
        assert not left_out


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
CLIP_ATTENTION = {"q_proj", "k_proj", "v_proj", "out_proj"}
LLAMA_MLP = {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("name", "modality", "attention", "mlp"),
    [
        ("llava", "vision", CLIP_ATTENTION, {"fc1", "fc2"}),
        ("llava", "language", ATTENTION, LLAMA_MLP),
        ("qwen2_vl", "vision", {"qkv", "proj"}, {"fc1", "fc2"}),
        ("qwen2_5_vl", "vision", {"qkv", "proj"}, LLAMA_MLP),
        ("qwen3_vl", "vision", {"qkv", "proj"}, {"linear_fc1", "linear_fc2"}),
        ("qwen3_vl", "language", ATTENTION, LLAMA_MLP),
        ("gemma3", "vision", CLIP_ATTENTION, {"fc1", "fc2"}),
        ("internvl", "vision", {"q_proj", "k_proj", "v_proj", "projection_layer"}, {"fc1", "fc2"}),
        ("mistral3", "vision", ATTENTION, LLAMA_MLP),
        ("blip-2", "vision", {"qkv", "projection"}, {"fc1", "fc2"}),
        ("blip-2", "projector", {"query", "key", "value", "dense"}, {"dense"}),
        ("blip-2", "language", CLIP_ATTENTION, {"fc1", "fc2"}),
        ("mllama", "vision", ATTENTION, {"fc1", "fc2"}),
        ("mllama", "language", ATTENTION, LLAMA_MLP),
    ],
)
def test_roles(name, modality, attention, mlp):
    model = shrunken(name)
    assert leaves(model, {"targets": ["attention"]}, modality) == attention
    assert leaves(model, {"targets": ["mlp"]}, modality) == mlp


def test_gated_cross_attention_is_never_adapted():
    found = names(shrunken("mllama"), {}, "language")
    assert found and not any(".layers.1." in name for name in found)


def test_a_target_without_a_match_lists_candidates():
    with pytest.raises(MmdoraError, match=r"adapt\.vision\.targets: 'o_proj'.*attention, mlp, all.*out_proj"):
        make_plan(shrunken_llava(), {"vision": {"method": "dora", "targets": ["q_proj", "o_proj"]}})


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


def test_tied_head_and_modules_that_are_read_are_refused_by_name():
    tied = shrunken("paligemma")
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    with pytest.raises(MmdoraError, match="lm_head: its weight is tied to"):
        make_plan(tied, {"language": {"method": "lora", "targets": ["lm_head"]}})
    assert names(shrunken_llava(), {"targets": ["lm_head"]}, "language") == ["lm_head"]


POOL = "model.multi_modal_projector.pool"


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (lambda: nn.MultiheadAttention(16, 2, kdim=8), "out_proj: the nn.Multi.* cannot be adapted: .* another width"),
        (lambda: nn.MultiheadAttention(16, 2, add_bias_kv=True), "cannot be adapted: its add_bias_kv"),
        (lambda: nn.TransformerEncoderLayer(16, 2), "nn.TransformerEncoderLayer reads its weight in evaluation"),
    ],
)
def test_attentions_that_would_not_call_are_refused(pool, message):
    model = shrunken_llava()
    model.model.multi_modal_projector.pool = pool()
    with pytest.raises(MmdoraError, match=message):
        make_plan(model, {"projector": {"method": "lora", "targets": ["out_proj"]}})
    plan = make_plan(model, {"projector": {"method": "lora"}})
    assert not [entry for entry in plan.entries if entry.name.startswith(POOL)]
    assert sum("pool" in note for note in plan.notes) == 2


def test_the_read_half_of_an_attention_needs_the_other():
    model = shrunken_llava()
    model.model.multi_modal_projector.pool = nn.MultiheadAttention(16, 2)
    with pytest.raises(MmdoraError, match=r"pool\.out_proj: is read, not called, .*name pool beside it"):
        make_plan(model, {"projector": {"method": "lora", "targets": ["out_proj"]}})
    assert names(model, {"targets": ["pool"]}, "projector") == [POOL]
    assert names(model, {"targets": ["attention"]}, "projector") == [POOL, f"{POOL}.out_proj"]


CLIP_EMBEDDINGS = "model.vision_tower.embeddings"


def test_convolutions_and_embeddings_are_named():
    model = shrunken_llava()
    plan = inject(
        model,
        {
            "vision": {
                "method": "dora",
                "rank": 4,
                "dropout": 0.1,
                "targets": ["patch_embedding", "position_embedding"],
            },
            "language": {"method": "lora", "rank": 8, "dropout": 0.1, "targets": ["embed_tokens", "q_proj"]},
        },
    )
    vision, reading = [[e for e in plan.entries if e.modality == m] for m in ("vision", "language")]
    assert [(e.name, e.kind, e.dropout, e.parameters) for e in vision] == [
        (f"{CLIP_EMBEDDINGS}.patch_embedding", "conv", 0.1, 4 * 3 * 4 * 4 + 16 * 4 + 16),
        (f"{CLIP_EMBEDDINGS}.position_embedding", "embedding", 0.0, 4 * 5 + 16 * 4 + 16),
    ]
    assert [(e.kind, e.dropout) for e in reading] == [("embedding", 0.0), ("linear", 0.1), ("linear", 0.1)]
    trainable = {name: p.numel() for name, p, _, _ in trainable_parameters(model)}
    assert plan.trainable == sum(trainable.values()) == sum(e.parameters for e in plan.entries)
    assert re.search(r"vision +dora +2 +4 +372 ", str(plan))


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


@pytest.mark.parametrize("target", ["patch_embed*", "embeddings.patch_embedding"])
def test_patterns_reach_convolutions(target):
    assert names(shrunken_llava(), {"targets": [target]}, "vision") == [f"{CLIP_EMBEDDINGS}.patch_embedding"]


def test_a_target_without_a_match_names_convolutions_and_embeddings():
    message = (
        r"'patches' matches nothing there.*convolutions, by name only: patch_embedding; embeddings.*: position_emb"
    )
    with pytest.raises(MmdoraError, match=message):
        make_plan(shrunken_llava(), {"vision": {"method": "lora", "targets": ["patches"]}})


def test_a_weight_that_is_only_read_is_refused():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 8)
            self.called = nn.Embedding(4, 8)
            nn.init.zeros_(self.table.weight)

        def forward(self, x):
            return x + self.table.weight.sum() + self.called(x) + self.called.weight.sum()

    model = shrunken_llava()
    model.model.vision_tower.embeddings.reads = Reads()
    with pytest.raises(MmdoraError, match="Reads reads its weight and never calls it"):
        make_plan(model, {"vision": {"method": "lora", "targets": ["table"]}})
    assert names(model, {"targets": ["called"]}, "vision") == [f"{CLIP_EMBEDDINGS}.reads.called"]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_module_that_these_models_call_is_taken_for_one_that_is_read(name):
    model = shrunken(name)
    for modality in ("vision", "projector", "language"):
        found = candidates_of(model, find_parts(model), modality)
        assert not [path for path, why in found.refused.items() if "never calls" in why]


@pytest.mark.parametrize(
    ("name", "message"), [("gemma3", "embed_tokens: Gemma3TextScaledWordEmbedding has a forward of its own"),
                          ("paligemma", "embed_tokens: its weight is tied to lm_head.weight")],
)  # fmt: skip
def test_embeddings_that_cannot_be_adapted(name, message):
    model = shrunken(name, **({"tie_word_embeddings": False} if name == "gemma3" else {}))
    with pytest.raises(MmdoraError, match=message):
        make_plan(model, {"language": {"method": "lora", "targets": ["embed_tokens"]}})


def test_groups_that_do_not_divide_the_rank_are_told_by_name():
    model = shrunken_llava()
    model.model.vision_tower.embeddings.mixer = nn.Conv2d(6, 6, 3, groups=3)
    with pytest.raises(MmdoraError, match=r"embeddings\.mixer: .*multiple of 3, not 4"):
        make_plan(model, {"vision": {"method": "lora", "rank": 4, "targets": ["mixer"]}})


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


def shake(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for _, parameter, _, kind in trainable_parameters(model):
            if kind == "magnitude":
                parameter *= 1 + 0.2 * torch.rand_like(parameter)
            else:
                parameter += 0.05 * torch.randn_like(parameter)


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
