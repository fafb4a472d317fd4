"""PEFT's adapters of bases with tied weights, of older transformers, and of odd kinds: equal to PEFT, or refused."""

import json
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from shrunken import llava_inputs, shrunken, shrunken_llava
from transformers import LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

import mmdora
from mmdora.adapt.inject import inject, merge, plan_of
from mmdora.adapter_files.adapters import load_adapter, save_adapter
from mmdora.errors import MmdoraError

pytestmark = pytest.mark.filterwarnings("ignore:.*carries no fingerprint", "ignore::UserWarning:peft")
WEIGHTS = "adapter_model.safetensors"
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


def tied_llava():
    """Its head is its token embedding."""
    return mmdora.load("tiny-llava")[0]


def logits(model, inputs=None):
    with torch.no_grad():
        return model.eval()(**(inputs or llava_inputs())).logits


def words(model):
    return {"input_ids": torch.arange(3, 40)[None] % model.config.text_config.vocab_size}


def peft_model(base, folder, **options):
    model = get_peft_model(base, LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **options}))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def edit(folder, change):
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS, {"format": "pt"})


def max_rel(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


# --- tied weights


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "tied to model.language_model.embed_tokens.weight, which a merge"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "tied to lm_head.weight, which a merge would change too"),
        ({"target_modules": ["embed_tokens"], "use_dora": True}, "tied to lm_head.weight"),
        ({"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, "tied to"),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, "one tensor of this base .tied., and the adapter holds two"),
        ({"modules_to_save": ["lm_head"]}, f"{HEAD} and {EMBEDDING} are one tensor .* first alone"),
        ({"modules_to_save": ["embed_tokens"]}, f"{EMBEDDING} and {HEAD} are one tensor .* first alone"),
    ],
    ids=str,
)
def test_what_inject_refuses_on_tied_weights_reading_refuses_too(options, said, tmp_path):
    peft_model(tied_llava(), tmp_path, **options)
    model = tied_llava()
    with pytest.raises(MmdoraError, match=said):
        load_adapter(model, tmp_path)
    assert plan_of(model) is None
    if "modules_to_save" not in options:
        target = options["target_modules"][-1]
        with pytest.raises(MmdoraError, match="tied to"):
            inject(model, {"language": {"method": "lora", "targets": [target]}})


def test_a_tied_weight_that_stays_tied_loads_equal_to_peft(tmp_path):
    theirs = peft_model(tied_llava(), tmp_path, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    ours = tied_llava()
    load_adapter(ours, tmp_path)
    assert ours.lm_head.weight is ours.model.language_model.embed_tokens.weight
    assert max_rel(logits(ours, words(ours)), logits(theirs, words(ours))) <= 1e-5


def test_two_tensors_for_one_parameter_in_a_file_of_ours(tmp_path):
    model = tied_llava()
    inject(model, {"language": {"method": "full"}})
    save_adapter(model, tmp_path)
    load_adapter(tied_llava(), tmp_path)
    edit(tmp_path, lambda t: t | {f"base_model.model.{HEAD}": t[f"base_model.model.{HEAD}"] + 1})
    ours = json.loads((tmp_path / "mmdora.json").read_text())
    del ours["files"], ours["sha256"]  # as mmdora before 0.2 wrote it
    (tmp_path / "mmdora.json").write_text(json.dumps(ours))
    with pytest.raises(MmdoraError, match="the adapter holds two that differ"):
        load_adapter(tied_llava(), tmp_path)


# --- names


def as_of_4_51(name):
    return name.replace("model.model.language_model.", "model.language_model.model.").replace(
        "model.model.vision_tower.", "model.vision_tower.vision_model."
    ).replace("model.model.multi_modal_projector.", "model.multi_modal_projector.").replace(
        "base_model.model.lm_head", "base_model.model.language_model.lm_head"
    )  # fmt: skip


def as_of_4_57(name):
    return name.replace("model.vision_tower.", "model.vision_tower.vision_model.")


@pytest.mark.parametrize("older", [as_of_4_51, as_of_4_57])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"alpha_pattern": {"language_model.model.layers.1.self_attn.q_proj": 32}},
        {"target_modules": "all-linear", "use_dora": True},
    ],
    ids=str,
)
def test_names_of_older_transformers_are_mapped_as_peft_maps_them(older, options, tmp_path):
    pattern = options.get("alpha_pattern")
    now = {"model.language_model.layers.1.self_attn.q_proj": 32} if pattern else None
    theirs = peft_model(shrunken_llava(), tmp_path, **{**options, **({"alpha_pattern": now} if now else {})})
    expected = logits(theirs)
    edit(tmp_path, lambda tensors: {older(name): tensor for name, tensor in tensors.items()})
    if pattern and older is as_of_4_51:
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": pattern}))
    elif not pattern and "target_modules" not in options:
        assert max_rel(logits(PeftModel.from_pretrained(shrunken_llava(), tmp_path)), expected) <= 1e-6
    ours = shrunken_llava()
    load_adapter(ours, tmp_path)
    assert max_rel(logits(ours), expected) <= 1e-5


def test_modules_to_save_of_an_older_transformers(tmp_path):
    theirs = peft_model(shrunken_llava(), tmp_path, modules_to_save=["multi_modal_projector"])
    expected = logits(theirs)
    edit(tmp_path, lambda tensors: {as_of_4_51(name): tensor for name, tensor in tensors.items()})
    ours = shrunken_llava()
    assert len(load_adapter(ours, tmp_path).full) == 4
    assert max_rel(logits(ours), expected) <= 1e-5


def test_a_name_that_no_version_had_is_refused(tmp_path):
    peft_model(shrunken_llava(), tmp_path)
    edit(tmp_path, lambda tensors: {name.replace("q_proj", "query"): tensor for name, tensor in tensors.items()})
    with pytest.raises(MmdoraError, match=r"has no module \S+query; load the adapter's own base"):
        load_adapter(shrunken_llava(), tmp_path)


def test_tensors_from_a_state_dict_with_the_adapters_name(tmp_path):
    theirs = peft_model(shrunken_llava(), tmp_path, use_dora=True, modules_to_save=["multi_modal_projector"])
    state = {name: t.contiguous() for name, t in theirs.state_dict().items() if ".default" in name}
    assert any(".lora_A.default.weight" in name for name in state)
    save_file(state, tmp_path / WEIGHTS)
    ours = shrunken_llava()
    load_adapter(ours, tmp_path)
    assert max_rel(logits(ours), logits(theirs)) <= 1e-5
    two = state | {name.replace(".default", ".other"): t.clone() for name, t in state.items()}
    save_file(two, tmp_path / WEIGHTS)
    with pytest.raises(MmdoraError, match=r"holds 2 adapters \(default, other\)"):
        load_adapter(shrunken_llava(), tmp_path)


# --- parts, modules that never run, vocabularies


def test_parts_can_be_given(tmp_path):
    peft_model(shrunken_llava(), tmp_path / "theirs")
    model = shrunken_llava()
    given = {"vision": ["model.vision_tower"], "language": ["model.language_model", "lm_head"]}
    plan = load_adapter(model, tmp_path / "theirs", parts={k: tuple(v) for k, v in given.items()})
    assert plan.parts.projector == () and plan.parts.language == ("model.language_model", "lm_head")
    save_adapter(model, tmp_path / "ours")
    assert load_adapter(shrunken_llava(), tmp_path / "ours").parts == plan.parts
    with pytest.raises(MmdoraError, match="leave parts out"):
        load_adapter(shrunken_llava(), tmp_path / "ours", parts={"vision": ("model.vision_tower",)})
    with pytest.raises(MmdoraError, match=r"adapt\.parts\.vision: .* has no module 'tower'"):
        load_adapter(shrunken_llava(), tmp_path / "theirs", parts={"vision": ("tower",)})


def siglip_llava():
    plain = shrunken_llava().config
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vision_config": vision, "text_config": plain.text_config}
    sizes |= {"image_token_id": plain.image_token_id, "vision_feature_select_strategy": "full"}
    return LlavaForConditionalGeneration(LlavaConfig(**sizes)).eval()


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_pooling_head_that_never_runs(use_dora, tmp_path):
    """PEFT adapts the `out_proj` of its attention by name; nothing that reaches the projector goes through it."""
    base = siglip_llava()
    name = "model.vision_tower.head.attention.out_proj"
    assert isinstance(base.get_submodule(name.rpartition(".")[0]), torch.nn.MultiheadAttention)
    inputs = words(base)
    theirs = peft_model(base, tmp_path, target_modules=["out_proj", "q_proj"], use_dora=use_dora)
    ours = siglip_llava()
    plan = load_adapter(ours, tmp_path)
    assert name in {entry.name for entry in plan.entries}
    assert max_rel(logits(ours, inputs), logits(theirs, inputs)) <= 1e-5
    pixels = {"pixel_values": torch.randn(1, 3, 28, 28)}
    with torch.no_grad():
        models: tuple[Any, ...] = (ours, theirs.get_base_model())
        one, other = (model.get_image_features(**pixels).pooler_output for model in models)
    assert max_rel(one[0], other[0]) <= 1e-5
    merged, expected = merge(ours).state_dict(), theirs.merge_and_unload().state_dict()
    for key in (f"{name}.weight", "model.vision_tower.encoder.layers.0.self_attn.out_proj.weight"):
        torch.testing.assert_close(merged[key], expected[key], rtol=1e-5, atol=1e-6)


def test_an_attention_that_runs_is_not_adapted_by_its_out_proj_alone(tmp_path):
    base = shrunken_llava()
    base.model.vision_tower.extra = torch.nn.MultiheadAttention(32, 4)
    peft_model(base, tmp_path, target_modules=["q_proj"])
    tensors = load_file(tmp_path / WEIGHTS)
    prefix = "base_model.model.model.vision_tower.extra.out_proj"
    extra = {f"{prefix}.lora_A.weight": torch.randn(4, 32), f"{prefix}.lora_B.weight": torch.randn(32, 4)}
    save_file(tensors | extra, tmp_path / WEIGHTS)
    model = shrunken_llava()
    model.model.vision_tower.extra = torch.nn.MultiheadAttention(32, 4)
    with pytest.raises(MmdoraError, match="is read, not called"):
        load_adapter(model, tmp_path)


def test_an_embedding_of_a_resized_vocabulary(tmp_path):
    def resized(extra):
        model = shrunken_llava()
        torch.manual_seed(5)
        model.resize_token_embeddings(model.config.text_config.vocab_size + extra, mean_resizing=False)
        return model

    theirs = peft_model(resized(8), tmp_path, modules_to_save=["embed_tokens", "lm_head"])
    rows = theirs.config.text_config.vocab_size
    with pytest.raises(
        MmdoraError, match=rf"resized to {rows} tokens, .* has {rows - 8}; .*resize_token_embeddings\({rows}"
    ):
        load_adapter(shrunken_llava(), tmp_path)
    ours = resized(8)
    load_adapter(ours, tmp_path)
    assert max_rel(logits(ours), logits(theirs)) <= 1e-5
    # PEFT also saves embeddings that nobody named, where the vocabulary is another than the base's on disk.
    theirs = get_peft_model(resized(8), LoraConfig(target_modules=["q_proj"]))
    theirs.save_pretrained(tmp_path / "unasked", save_embedding_layers=True)
    assert f"base_model.model.{EMBEDDING}" in load_file(tmp_path / "unasked" / WEIGHTS)
    ours = resized(8)
    load_adapter(ours, tmp_path / "unasked")
    assert max_rel(logits(ours), logits(theirs)) <= 1e-5


# --- models that cannot be adapted


def test_a_model_without_values(tmp_path):
    peft_model(shrunken_llava(), tmp_path)
    with torch.device("meta"):
        empty = shrunken("llava")
    for adapt in (lambda m: inject(m, {"language": {"method": "lora"}}), lambda m: load_adapter(m, tmp_path)):
        with pytest.raises(MmdoraError, match="is on the meta device and has no values"):
            adapt(empty)


def test_a_model_made_in_inference_mode(tmp_path):
    peft_model(shrunken_llava(), tmp_path)
    ordinary = shrunken_llava()
    with torch.inference_mode():
        frozen = shrunken_llava()
    for adapt in (lambda m: inject(m, {"language": {"method": "lora"}}), lambda m: load_adapter(m, tmp_path)):
        with pytest.raises(MmdoraError, match=r"was made under torch\.inference_mode"):
            adapt(frozen)
        with torch.inference_mode(), pytest.raises(MmdoraError, match=r"torch\.inference_mode is on"):
            adapt(ordinary)
    assert plan_of(ordinary) is None
