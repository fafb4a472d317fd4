"""Adapter files: round trips with ourselves and with PEFT, fingerprints, and bad files."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from shrunken import llava_inputs, shake, shrunken, shrunken_llava

import mmdora
from mmdora.adapt.fingerprint import fingerprint, same_base
from mmdora.adapt.inject import adapted_modules, inject, merge, plan_of
from mmdora.adapter_files.adapters import load_adapter, save_adapter
from mmdora.errors import MmdoraError
from mmdora.models.base import skeleton

PLANS = {
    "dora": {"vision": {"method": "dora", "rank": 4}, "language": {"method": "dora", "rank": 8, "alpha": 12}},
    "lora": {"vision": {"method": "lora", "rank": 2}, "language": {"method": "lora", "rank": 8, "rslora": True}},
    "mixed": {
        "vision": {"method": "dora", "rank": 4},
        "projector": {"method": "magnitude"},
        "language": {"method": "lora", "rank": 8, "dropout": 0.1},
    },
    "magnitude": {"language": {"method": "magnitude"}},
    "full projector": {"projector": {"method": "full"}, "language": {"method": "dora"}},
    "full tower": {"vision": {"method": "full"}, "language": {"method": "lora"}},
    "full language": {"vision": {"method": "lora"}, "language": {"method": "full"}},
    "biases": {"vision": {"method": "dora", "rank": 4, "bias": True}, "language": {"method": "lora"}},
    "norms": {"vision": {"method": "lora", "rank": 4, "norms": True}, "language": {"norms": True}},
    "both": {"vision": {"method": "magnitude", "bias": True, "norms": True}, "projector": {"bias": True}},
}
FIRST = {"vision": {"targets": ["patch_embedding", "q_proj"]}, "language": {"targets": ["embed_tokens", "q_proj"]}}
PLANS |= {
    f"{seeing} first, {reading} first": {
        "vision": {"method": seeing, **FIRST["vision"]},
        "language": {"method": reading, "dropout": 0.1, **FIRST["language"]},
    }
    for seeing, reading in [("dora", "dora"), ("lora", "lora"), ("lora", "magnitude"), ("magnitude", "lora")]
}
ALL_PLANS = pytest.mark.parametrize("adapt", PLANS.values(), ids=PLANS)


def logits(model):
    with torch.no_grad():
        return model.eval()(**llava_inputs()).logits


def max_rel(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def trained(adapt, seed=0):
    model = shrunken_llava(seed)
    inject(model, adapt)
    shake(model)
    return model


@pytest.fixture
def saved(tmp_path):
    model = trained(PLANS["mixed"])
    save_adapter(model, tmp_path)
    return tmp_path


@ALL_PLANS
def test_round_trip_and_what_peft_computes(adapt, tmp_path):
    model = trained(adapt)
    expected = logits(model)
    assert max_rel(expected, logits(shrunken_llava())) > 1e-2
    save_adapter(model, tmp_path, base="some/base")
    fresh = shrunken_llava()
    plan = load_adapter(fresh, tmp_path)
    assert plan == plan_of(model) == plan_of(fresh)
    assert torch.equal(logits(fresh), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of keys and patterns that match nothing
        loaded = PeftModel.from_pretrained(shrunken_llava(), tmp_path)
    assert max_rel(logits(loaded), expected) <= 1e-5
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/base"
    assert max_rel(logits(merge(fresh)), expected) <= 1e-5


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "blip-2", "llava_next"])
def test_full_parts_of_other_shapes_round_trip(name, tmp_path):
    """A projector inside the tower, one that is a loose parameter, one of three modules, one with a loose one."""
    model = shrunken(name)
    inject(model, {"projector": {"method": "full"}, "vision": {"method": "dora"}, "language": {"method": "lora"}})
    shake(model)
    save_adapter(model, tmp_path)
    fresh = shrunken(name)
    load_adapter(fresh, tmp_path)
    state = fresh.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    peft = PeftModel.from_pretrained(shrunken(name), tmp_path).merge_and_unload().state_dict()
    for key, tensor in merge(model).state_dict().items():
        torch.testing.assert_close(peft[key], tensor, rtol=1e-5, atol=1e-6, msg=key)


def test_full_alone_round_trips_without_a_peft_config(tmp_path):
    model = trained({"projector": {"method": "full"}})
    save_adapter(model, tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    fresh = shrunken_llava()
    load_adapter(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(model))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "r": 4},
        {"use_dora": True, "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 6}},
        {"alpha_pattern": {"k_proj": 32}, "rank_pattern": {"k_proj": 4}},
        {"modules_to_save": ["multi_modal_projector"], "use_dora": True},
        {"target_modules": r".*language_model.*\.(up|down)_proj", "lora_dropout": 0.1},
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "bias": "all", "use_dora": True},
        {"bias": "lora_only"},
        {"target_modules": ["patch_embedding", "embed_tokens", "q_proj"], "rank_pattern": {"embed_tokens": 3}},
        {"target_modules": ["patch_embedding", "embed_tokens", "q_proj"], "use_dora": True, "lora_dropout": 0.1},
        {"target_modules": ["position_embedding", "patch_embedding"], "use_dora": True},
    ],
    ids=str,
)
def test_an_adapter_written_by_peft_loads(options, tmp_path):
    config = LoraConfig(**{"target_modules": ["q_proj", "k_proj", "v_proj"], "lora_alpha": 12, **options})
    theirs = get_peft_model(shrunken_llava(), config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    expected = logits(theirs)
    model = shrunken_llava()
    with pytest.warns(UserWarning, match="no fingerprint"):
        plan = load_adapter(model, tmp_path)
    assert {entry.method for entry in plan.entries} == {"dora" if options.get("use_dora") else "lora"}
    assert bool(plan.full) == ("modules_to_save" in options or "bias" in options)
    assert max_rel(logits(model), expected) <= 1e-5
    save_adapter(model, tmp_path / "again")
    again = PeftModel.from_pretrained(shrunken_llava(), tmp_path / "again")
    assert max_rel(logits(again), expected) <= 1e-5


def test_an_embedding_that_peft_copied_from_another_base_is_refused(tmp_path):
    config = LoraConfig(target_modules=["embed_tokens"])
    get_peft_model(shrunken_llava(), config).save_pretrained(tmp_path)
    assert any(name.endswith("base_layer.weight") for name in load_file(tmp_path / "adapter_model.safetensors"))
    model = shrunken_llava(seed=1)
    with pytest.raises(MmdoraError, match=r"carries another model\.language_model\.embed_tokens than"):
        load_adapter(model, tmp_path)
    assert plan_of(model) is None


def with_groups():
    model = shrunken_llava()
    torch.manual_seed(9)
    model.model.vision_tower.embeddings.mixer = torch.nn.Conv2d(6, 6, 3, groups=3)
    return model


def test_grouped_convolutions_round_trip_and_say_where_peft_differs(tmp_path):
    model = with_groups()
    inject(model, {"vision": {"method": "dora", "rank": 6, "targets": ["mixer"]}})
    shake(model)
    with pytest.warns(UserWarning, match=r"embeddings\.mixer: PEFT mixes the 3 groups"):
        save_adapter(model, tmp_path)
    fresh = with_groups()
    load_adapter(fresh, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    (tmp_path / "mmdora.json").unlink()
    with pytest.raises(MmdoraError, match="mixes the 3 groups"):
        load_adapter(with_groups(), tmp_path)


def test_filters_across_groups_that_peft_trained_are_refused(tmp_path):
    theirs = get_peft_model(with_groups(), LoraConfig(target_modules=["mixer"], r=6))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(MmdoraError, match=r"mixer: its filters see channels of all 3 groups"):
        load_adapter(with_groups(), tmp_path)


def test_dropout_mode_is_kept_in_the_files(tmp_path):
    adapt = {"language": {"method": "dora", "dropout": 0.1, "dropout_mode": "reference"}}
    save_adapter(trained(adapt), tmp_path)
    fresh = shrunken_llava()
    plan = load_adapter(fresh, tmp_path)
    assert {entry.dropout_mode for entry in plan.entries} == {"reference"}
    assert {module.dropout_mode for module in adapted_modules(fresh).values()} == {"reference"}
    saved = json.loads((tmp_path / "mmdora.json").read_text())
    for entry in saved["plan"]["entries"]:  # as files of 0.1.0 are
        del entry["dropout_mode"], entry["kind"], entry["because"]
    del saved["why"], saved["files"], saved["sha256"]
    (tmp_path / "mmdora.json").write_text(json.dumps(saved))
    plan = load_adapter(shrunken_llava(), tmp_path)
    assert {(entry.dropout_mode, entry.because) for entry in plan.entries} == {("branch", "")}
    assert plan.reasons() == [] and "None" not in str(plan)


def test_another_base_of_the_same_shape_is_refused(saved):
    other = shrunken_llava(seed=1)
    with pytest.raises(MmdoraError, match=r"another base: its .* has other values"):
        load_adapter(other, saved)
    assert plan_of(other) is None and all(p.requires_grad for p in other.parameters())
    with pytest.raises(MmdoraError, match="other names or shapes"):
        load_adapter(shrunken("qwen2_vl"), saved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fingerprint_does_not_depend_on_the_dtype(saved, dtype):
    load_adapter(shrunken_llava().to(dtype), saved)
    assert same_base(fingerprint(shrunken_llava().to(dtype)), fingerprint(shrunken_llava())) is None
    assert same_base(fingerprint(shrunken_llava(1).to(dtype)), fingerprint(shrunken_llava())) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_tensor_can_be_another_unseen(dtype):
    """One value of each tensor, far from those that are sampled, is changed; that tensor is named."""
    model = mmdora.load("tiny-llava")[0].to(dtype)
    whole, tied = fingerprint(model), {"model.language_model.embed_tokens.weight": "lm_head.weight"}
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[parameter.numel() * 3 // 11] += 0.5
            assert f"its {tied.get(name, name)} has" in (same_base(whole, fingerprint(model)) or ""), name
            parameter.copy_(kept)
    assert same_base(whole, fingerprint(model)) is None


def test_fingerprints_of_before_compare_by_what_they_hold():
    """mmdora before 0.2 kept the samples of at most 96 tensors."""
    now = fingerprint(shrunken_llava())
    names = list(now["samples"])[::2]
    before = {**now, "samples": {name: now["samples"][name] for name in names}}
    del before["digests"]
    assert same_base(before, now) is None and same_base(now, before) is None
    assert same_base(before, fingerprint(shrunken_llava(1))) is not None


def test_a_skeleton_holds_no_values():
    kept = fingerprint(skeleton("tiny-llava"))
    assert not kept["digests"] and len(kept["samples"]) > 100


def test_fingerprint_is_the_bases_after_training(tmp_path):
    model = trained(PLANS["full projector"])
    plan = plan_of(model)
    assert plan is not None and plan.fingerprint == fingerprint(shrunken_llava())


def test_adapting_twice_is_refused(saved):
    model = shrunken_llava()
    load_adapter(model, saved)
    with pytest.raises(MmdoraError, match="already adapted"):
        load_adapter(model, saved)


def edit(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_one_error_lists_every_tensor_that_does_not_fit(saved):
    def change(tensors):
        tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(2, 2)
        names = [name for name in tensors if "language_model" in name]
        del tensors[names[0]]
        tensors[names[1]] = torch.zeros(3)

    edit(saved, change)
    model = shrunken_llava()
    with pytest.raises(MmdoraError, match=r"3 tensors do not fit: missing .*; unexpected lm_head.*; .* is \(3,\), not"):
        load_adapter(model, saved)
    assert plan_of(model) is None and all(p.requires_grad for p in model.parameters())


def test_bad_folders(tmp_path, saved):
    model = shrunken_llava()
    with pytest.raises(MmdoraError, match="no adapter here"):
        load_adapter(model, tmp_path / "nowhere")
    weights = saved / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(MmdoraError, match="not a readable safetensors file"):
        load_adapter(model, saved)
    weights.unlink()
    (saved / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(MmdoraError, match="pickle"):
        load_adapter(model, saved)
    weights.write_bytes(whole)
    for text, message in [
        ("{", "not a readable JSON"),
        ("[]", "expected a JSON object"),
        ('{"format": 2, "mmdora": "9"}', "newer mmdora"),
        ('{"format": 1, "plan": {}}', "damaged"),
    ]:
        (saved / "mmdora.json").write_text(text)
        with pytest.raises(MmdoraError, match=message):
            load_adapter(model, saved)
    assert plan_of(model) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is LOHA"),
        ({"bias": "some"}, "bias is 'some'"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
    ids=str,
)
def test_what_peft_can_express_and_we_cannot_is_refused(saved, change, message):
    (saved / "mmdora.json").unlink()
    config = json.loads((saved / "adapter_config.json").read_text())
    (saved / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(MmdoraError, match=message):
        load_adapter(shrunken_llava(), saved)


def test_saving_replaces_and_leaves_no_temporary_file(saved):
    save_adapter(trained(PLANS["lora"]), saved)
    assert sorted(path.name for path in saved.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "mmdora.json",
    ]  # fmt: skip
    fresh = shrunken_llava()
    load_adapter(fresh, saved)
    assert torch.equal(logits(fresh), logits(trained(PLANS["lora"])))
