"""Adapters on what open_clip is made of, in a whole VL-BART: against dense float64, the merge, PEFT, and files."""

import copy
import warnings
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from layer_cases import max_rel
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import Attention
from peft.tuners.lora.layer import MultiheadAttention as PeftAttention
from safetensors.torch import load_file
from shrunken_vlbart import RESNET, small_vlbart
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

import mmdora
from mmdora.adapt.inject import adapted_modules, inject, make_plan, merge, trainable_parameters, unload
from mmdora.adapt.modality import ModelParts
from mmdora.adapt.targets import candidates_of
from mmdora.errors import MmdoraError
from mmdora.export.merge_disk import DiskMerge
from mmdora.export.tensor_parity import tensor_parity
from mmdora.layers import AdaptedAttention
from mmdora.ops import reference

METHOD = pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
VISION = {
    "vit": ["all", "conv1"],
    "pooled vit": ["attention", "mlp"],
    "resnet": ["conv?", "downsample.0"],
    "pooled resnet": ["attention", "conv1"],
}
TOWER = pytest.mark.parametrize("tower", VISION)


def build(tower: str) -> Any:
    pooled, _, name = tower.rpartition(" ")
    torch.manual_seed(0)
    model = small_vlbart(name, feature="pooled" if pooled else "grid")[0]
    if tower == "pooled resnet":
        model.model.vision_tower.visual.attnpool.q_proj.weight.data *= 0.02  # else it sees one place alone
    return model


def section(tower: str, method: str) -> dict[str, Any]:
    return {
        "vision": {"method": method, "rank": 2, "targets": VISION[tower]},
        "projector": {"method": method, "rank": 3, "targets": ["feature.0"]},  # no boxes are given
        "language": {"method": method, "rank": 4, "targets": ["attention", "mlp"]},
    }


def shake(model: Any) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for _, parameter, _, kind in trainable_parameters(model):
            noise = torch.randn_like(parameter)
            parameter.mul_(1 + 0.2 * noise) if kind == "magnitude" else parameter.add_(0.05 * noise)


def batch(model: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side = model.config.vision_config.image_size
    return {
        "input_ids": torch.randint(3, 200, (2, 7), generator=generator),
        "pixel_values": torch.randn(2, 1, 3, side, side, generator=generator),
        "labels": torch.randint(3, 200, (2, 5), generator=generator),
    }


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(**batch(model)).logits


def weight_of(name: str, module: Any) -> str:
    return f"{name}.{'in_proj_weight' if isinstance(module, AdaptedAttention) else 'weight'}"


@TOWER
@METHOD
def test_base_dense_merge_and_files(tower, method, tmp_path):
    """Identity at first; then outputs and gradients in float64; the file; the merge; all of one model."""
    plain = build(tower)
    ours = copy.deepcopy(plain)
    plan = inject(ours, section(tower, method))
    kinds = {entry.kind for entry in plan.entries if entry.modality == "vision"}
    conv, attention = tower != "pooled vit", "vit" in tower
    assert ("conv" in kinds, "attention" in kinds, "linear" in kinds) == (conv, attention, tower != "resnet")
    own = ("lora_A", "lora_B", "magnitude")
    kept = [name for name, _ in ours.named_parameters() if name.rpartition(".")[2] not in own]
    assert kept == [name for name, _ in plain.named_parameters()]
    assert max_rel(logits(ours), logits(plain)) <= 1e-5
    shake(ours)
    found = logits(ours)
    assert max_rel(found, logits(plain)) > 1e-3
    dense(ours, plain)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT cannot read them all
        mmdora.save_adapter(ours, tmp_path)
    fresh = copy.deepcopy(plain)
    assert mmdora.load_adapter(fresh, tmp_path).entries == plan.entries
    assert torch.equal(logits(fresh), found)
    unload(fresh)
    assert torch.equal(logits(fresh), logits(plain)) and str(fresh) == str(plain)
    merge(ours)
    assert str(ours) == str(plain) and list(ours.state_dict()) == list(plain.state_dict())
    assert max_rel(logits(ours), found) <= 1e-5


def dense(ours: Any, plain: Any) -> None:
    """Loss and gradients of a step in float64, beside the plain model with the dense W' of each module."""
    ours, wide = copy.deepcopy(ours).double(), copy.deepcopy(plain).double()
    own, weights = {}, {}
    for name, module in adapted_modules(ours).items():
        parts = [getattr(module, leaf) for leaf in ("lora_A", "lora_B", "magnitude")]
        a, b, m = (None if p is None else p.detach().double().requires_grad_() for p in parts)
        own |= {id(p): q for p, q in zip(parts, (a, b, m), strict=True) if p is not None}
        flat_a, flat_b = (None if t is None else t.flatten(1) for t in (a, b))
        w = wide.get_parameter(weight_of(name, module)).detach()
        whole = reference.adapted_weight(w.flatten(1), flat_a, flat_b, m, module.scaling)
        weights[weight_of(name, module)] = whole.view_as(w)
    inputs = batch(ours)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    loss, expected = ours(**inputs).loss, torch.func.functional_call(wide, weights, (), inputs).loss
    assert max_rel(loss, expected) <= 1e-12
    loss.backward()
    expected.backward()
    for name, parameter, _, _ in trainable_parameters(ours):
        assert own[id(parameter)].grad.abs().max() > 0, name
        assert parameter.grad is not None and max_rel(parameter.grad, own[id(parameter)].grad) <= 1e-9, name


@METHOD
@pytest.mark.parametrize("tower", ["vit", "pooled resnet"])
def test_the_merge_is_exact_in_float64(tower, method):
    model = build(tower).double()
    inject(model, section(tower, method))
    shake(model)
    inputs = batch(model)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        before = model(**inputs).logits
        assert max_rel(merge(model)(**inputs).logits, before) <= 1e-12


def vision(tower: str, **settings: Any) -> list[str]:
    plan = make_plan(build(tower), {"vision": {"method": "dora", "rank": 2, **settings}})
    return [entry.name.removeprefix("model.vision_tower.visual.") for entry in plan.entries]


def test_targets_of_the_towers():
    blocks = [f"transformer.resblocks.{index}" for index in (0, 1)]
    attention, mlp = ["attn", "attn.out_proj"], ["mlp.c_fc", "mlp.c_proj"]
    assert vision("vit", targets=["attention"]) == [f"{b}.{leaf}" for b in blocks for leaf in attention]
    assert vision("vit", targets=["mlp"]) == [f"{b}.{leaf}" for b in blocks for leaf in mlp]
    assert vision("vit", targets=["all"]) == [f"{b}.{leaf}" for b in blocks for leaf in attention + mlp]
    assert vision("vit", targets=["attn"]) == [f"{b}.attn" for b in blocks]
    pool = [f"attnpool.{leaf}" for leaf in ("k_proj", "q_proj", "v_proj", "c_proj")]
    assert vision("pooled resnet") == vision("pooled resnet", targets=["attention"]) == pool
    with pytest.raises(MmdoraError, match=r"attn\.out_proj: is read, not called.*name attn beside it"):
        vision("vit", targets=["out_proj"])
    plan = make_plan(build("vit"), {"vision": {"method": "dora", "rank": 2, "targets": ["attention"]}})
    width = 16
    assert [entry.parameters for entry in plan.entries[:2]] == [2 * width + 3 * width * 3, 2 * width + width * 3]
    assert [entry.kind for entry in plan.entries[:2]] == ["attention", "linear"]


def test_projections_that_are_bare_parameters_are_told():
    """open_clip's own attention, as its blocks with scaled attention have it."""
    model = build("vit")
    blocks = model.model.vision_tower.visual.transformer.resblocks
    for block in blocks:
        block.attn = Attention(16, num_heads=2)
    plan = make_plan(model, {"vision": {"method": "lora", "rank": 2, "targets": ["attention"]}})
    assert [entry.name.rpartition("resblocks.")[2] for entry in plan.entries] == ["0.attn.out_proj", "1.attn.out_proj"]
    (note,) = plan.notes
    assert note.endswith(
        "not adapted: model.vision_tower.visual.transformer.resblocks.0.attn.in_proj_weight and 1 more"
    )
    assert make_plan(model, {"vision": {"method": "lora", "rank": 2, "targets": ["mlp"]}}).notes == ()


def test_biases_of_an_attention_train_with_the_others():
    model = build("vit")
    plan = inject(model, {"vision": {"method": "lora", "rank": 2, "bias": True}})
    assert "model.vision_tower.visual.transformer.resblocks.0.attn.in_proj_bias" in plan.full
    model(**batch(model)).loss.backward()
    assert all(model.get_parameter(name).grad is not None for name in plan.full)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("tower", ["vit", "pooled resnet"])
def test_peft_reads_our_lora_and_we_read_its(tower, bias, tmp_path):
    """Same logits, gradients and names of tensors, through files both ways, but for what PEFT counts twice."""
    plain = build(tower)
    ours = copy.deepcopy(plain)
    settings = {"method": "lora", "rank": 4, "alpha": 12, "bias": bias}
    inject(ours, {"vision": {**settings, "targets": VISION[tower]}, "language": {**settings, "rank": 2}})
    shake(ours)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        mmdora.save_adapter(ours, tmp_path / "ours")
    assert (len(said) > 0) is (tower == "vit") and all("peft#3774" in str(one.message) for one in said)

    def opened() -> Any:
        return peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "ours", is_trainable=True).eval()

    theirs = opened()
    if tower == "vit":
        assert max_rel(logits(theirs), logits(ours)) > 1e-3  # if this fails, PEFT is mended: read its out_proj again
        with pytest.raises(
            MmdoraError, match=r"out_proj: PEFT adds the update .* twice .* merge this adapter with peft"
        ):
            theirs.save_pretrained(tmp_path / "theirs")
            mmdora.load_adapter(copy.deepcopy(plain), tmp_path / "theirs")
        theirs = opened()  # its forward adds to the base's weights and takes off again, which leaves its roundings
        for out_proj in pefts_out_projs(theirs):
            out_proj.scaling["default"] /= 2
    wide = {"pixel_values": batch(ours)["pixel_values"].double()}
    found, expected = (model.double()(**batch(ours) | wide) for model in (ours, theirs))
    assert max_rel(found.logits, expected.logits) <= 1e-10
    found.loss.backward()
    expected.loss.backward()
    pairs: dict[str, Any] = dict(theirs.named_parameters())
    for name, parameter, _, kind in trainable_parameters(ours):
        key = f"base_model.model.{name}".replace(".attn.out_proj", ".attn.base_layer.out_proj")
        key += "" if kind == "full" else ".default.weight"
        if key in pairs:
            once = 2 if ".attn.out_proj.lora" in name else 1  # of the two updates, one passes a gradient on
            assert parameter.grad is not None, name
            assert max_rel(parameter.grad, once * pairs[key].grad.view(parameter.shape)) <= 1e-7, name
        else:
            assert bias and kind == "full", name

    if bias and tower == "vit":  # PEFT reads an in_proj_bias and does not write it back under that name
        return
    for out_proj in pefts_out_projs(theirs):
        out_proj.lora_B["default"].weight.data.zero_()
    theirs.float().save_pretrained(tmp_path / "theirs")
    keys = [set(load(tmp_path / folder)) for folder in ("ours", "theirs")]
    assert keys[0] <= keys[1] and (bias or keys[0] == keys[1])
    again = copy.deepcopy(plain)
    with pytest.warns(UserWarning, match="no fingerprint"):
        mmdora.load_adapter(again, tmp_path / "theirs")
    assert max_rel(logits(again), logits(theirs)) <= 1e-5


def pefts_out_projs(model: Any) -> list[Any]:
    return [module.base_layer.out_proj for module in model.modules() if isinstance(module, PeftAttention)]


def load(folder: Any) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_where_peft_has_no_dora_the_file_says_so(tmp_path):
    model = build("vit")
    inject(model, {"vision": {"method": "dora", "rank": 2, "targets": ["attention"]}})
    shake(model)
    with pytest.warns(UserWarning, match="PEFT has no DoRA for nn.MultiheadAttention; use this adapter with mmdora"):
        mmdora.save_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="does not support DoRA"):
        peft.PeftModel.from_pretrained(build("vit"), tmp_path)
    (tmp_path / "mmdora.json").unlink()  # the rest is in PEFT's own words
    again = build("vit")
    with pytest.warns(UserWarning, match="no fingerprint"):
        mmdora.load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_the_pool_is_open_clips():
    tower = build("pooled resnet").model.vision_tower
    theirs = AttentionPool2d(2, RESNET["vision_cfg"]["width"] * 32, tower.visual.attnpool.num_heads, 12)
    theirs.load_state_dict(tower.visual.attnpool.state_dict())
    x = torch.randn(3, 64, 2, 2, requires_grad=True)
    results = []
    for pool in (tower.visual.attnpool, theirs):
        y = pool(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *pool.parameters()])))
    assert all(max_rel(a, b) <= 1e-5 or b.abs().max() < 1e-5 for a, b in zip(*results, strict=True))
    alone: Any = nn.Module()
    alone.visual = theirs  # open_clip's own pool, in a model that is not ours, stays refused
    refused = candidates_of(alone, ModelParts(vision=("visual",), projector=(), language=()), "vision").refused
    assert len(refused) == 4 and all("never calls it" in why for why in refused.values())


def written(model: Any, folder: Any, section: dict[str, Any]) -> Any:
    """Base, adapter away from its start, and the model that wears it."""
    model.save_pretrained(folder / "base", max_shard_size="40KB")
    inject(model, section)
    shake(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        mmdora.save_adapter(model, folder / "adapter", base=str(folder / "base"))
    return model


@TOWER
@METHOD
def test_merged_from_disk_is_merged_in_memory(tower, method, tmp_path):
    model = written(build(tower), tmp_path, section(tower, method))
    disk = DiskMerge(tmp_path / "base", tmp_path / "adapter", "fp32")
    (tmp_path / "out").mkdir()
    disk.write(tmp_path / "out")
    tensor_parity(disk, tmp_path / "out").check()
    found = {k: t for path in (tmp_path / "out").glob("*.safetensors") for k, t in load_file(path).items()}
    merged = merge(model).state_dict()
    assert len(disk.merged) == len(disk.plan.entries) and found.keys() <= merged.keys()  # pyright: ignore
    assert all(torch.equal(tensor, merged[name]) for name, tensor in found.items())
    assert any("in_proj_weight" in name for name in disk.merged) == ("vit" in tower)
    again: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again.eval()), logits(model))


@pytest.mark.parametrize("method", ["lora", "dora", "magnitude", "full"])
def test_analysis_sees_the_fused_weight(method, tmp_path):
    plain = build("vit")
    targets = {} if method == "full" else {"targets": ["attention"], "rank": 2}
    model = written(copy.deepcopy(plain), tmp_path, {"vision": {"method": method, **targets}})
    rows = {row.name: row for row in mmdora.analyze(tmp_path / "adapter")}
    merge(model)
    name = "model.vision_tower.visual.transformer.resblocks.1.attn"
    old, new = (m.get_parameter(f"{name}.in_proj_weight").detach().double() for m in (plain, model))
    row = rows[name]
    assert (row.kind, row.method, row.rows, row.columns, row.layer) == ("attention", method, 48, 16, 1)
    assert row.delta_m == pytest.approx(float((new.norm(dim=1) - old.norm(dim=1)).abs().mean()), rel=1e-4)
    assert row.delta_d == pytest.approx(float((1 - F.cosine_similarity(new, old)).mean()), rel=1e-4, abs=1e-12)
    assert row.delta_norm == pytest.approx(float((new - old).norm()), rel=1e-4)
    assert rows[f"{name}.out_proj"].kind == "linear"
