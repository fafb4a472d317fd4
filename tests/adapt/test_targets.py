"""What `targets` reach: names, roles and patterns in every architecture, and what is refused by name."""

import re

import pytest
from shrunken import CONFIGS, shrunken, shrunken_llava
from torch import nn

from mmdora.adapt.inject import inject, make_plan, trainable_parameters
from mmdora.adapt.modality import find_parts
from mmdora.adapt.targets import candidates_of
from mmdora.errors import MmdoraError


def names(model, section, modality):
    return [e.name for e in make_plan(model, {modality: {"method": "lora", **section}}).entries]


def leaves(model, section, modality):
    return {name.rpartition(".")[2] for name in names(model, section, modality)}


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
