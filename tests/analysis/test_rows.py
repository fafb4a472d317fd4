"""Rows of trained adapters against dense float64 from the trained parameters, and against PEFT's merge."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from expert_cases import mixture
from merged_bases import write_adapter
from peak_memory import NEEDS_PROC, peak_of
from shrunken import TEXT, llava_inputs, shrunken, shrunken_llava
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedModel

import mmdora
from mmdora.adapt.inject import trainable_parameters
from mmdora.errors import MmdoraError
from mmdora.export.layout import save_checkpoint
from mmdora.layers import Adapted

ADAPT: dict[str, dict[str, Any]] = {
    "lora": {
        "vision": {"method": "lora", "rank": 2, "targets": ["attention", "patch_embedding"]},
        "projector": {"method": "full"},
        "language": {"method": "lora", "rank": 4, "rslora": True, "targets": ["attention", "embed_tokens"]},
    },
    "dora": {
        "vision": {"method": "dora", "rank": 2, "targets": ["attention", "patch_embedding"]},
        "projector": {"method": "lora", "rank": 3},
        "language": {"method": "dora", "rank": 4, "alpha": 3, "targets": ["mlp", "embed_tokens"]},
    },
    "magnitude": {
        "vision": {"method": "magnitude", "targets": ["attention", "patch_embedding"]},
        "language": {"method": "magnitude", "targets": ["attention", "embed_tokens"]},
    },
    "full": {part: {"method": "full"} for part in ("vision", "projector", "language")},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_checkpoint(untrained(), folder)
    return folder


def untrained() -> Any:
    return shrunken_llava(vision_feature_layer=-1)  # every layer of the tower is reached


def trained(base: Path, adapt: dict[str, Any], steps: int = 4) -> Any:
    """A few AdamW steps on a made-up goal."""
    model: Any = LlavaForConditionalGeneration.from_pretrained(base)
    mmdora.inject(model, adapt)
    optimizer = torch.optim.AdamW([p for _, p, _, _ in trainable_parameters(model)], lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(**llava_inputs()).logits
        F.cross_entropy(logits.flatten(0, 1), torch.arange(len(logits.flatten(0, 1))) % 64).backward()
        optimizer.step()
    return model


def dense(module: Adapted) -> torch.Tensor:
    """W' in the shape of the weight, float64, from the parameters alone."""
    w, s = module.base_weight.detach().double(), module.scaling
    a, b, m = (None if p is None else p.detach().double() for p in (module.lora_A, module.lora_B, module.magnitude))
    if module.kind == "embedding":  # one magnitude per dimension: over the rows of the table
        v = w if a is None or b is None else w + s * (b @ a).T
        return v if m is None else v * m / v.norm(dim=0)
    v = w if a is None or b is None else w + s * (b.flatten(1) @ a.flatten(1)).view_as(w)
    if m is None:
        return v
    norms = v.square().sum(tuple(range(1, v.ndim)), keepdim=True).sqrt()
    return v * m.view(norms.shape) / norms


def check(row: Any, old: torch.Tensor, new: torch.Tensor, *, embedding: bool) -> None:
    old, new = (w.detach().double().T if embedding else w.detach().double().flatten(1) for w in (old, new))
    assert (row.rows, row.columns) == old.shape
    turned = 1 - F.cosine_similarity(new, old, dim=1)
    assert row.delta_m == pytest.approx(float((new.norm(dim=1) - old.norm(dim=1)).abs().mean()), rel=1e-5, abs=1e-9)
    assert row.delta_d == pytest.approx(float(turned.mean()), rel=1e-5, abs=1e-13)
    values = torch.linalg.svdvals(new - old)
    assert row.base_norm == pytest.approx(float(old.norm()), rel=1e-9)
    assert row.delta_norm == pytest.approx(float(values.square().sum().sqrt()), rel=1e-5)
    assert row.relative == pytest.approx(row.delta_norm / row.base_norm)
    shares = values[values > 1e-9 * values[0]] / values.sum()
    assert row.effective_rank == pytest.approx(float((-shares * shares.log()).sum().exp()), rel=1e-4)
    assert row.stable_rank == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=1e-4)


@pytest.mark.parametrize("name", ADAPT)
def test_against_the_trained_model(base, tmp_path, name, monkeypatch):
    model = trained(base, ADAPT[name])
    mmdora.save_adapter(model, tmp_path, base=str(base))
    untouched = untrained()
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)  # no model is loaded
    rows = {row.name: row for row in mmdora.analyze(tmp_path)}
    plan, seen = model.mmdora_plan, set()
    for entry in plan.entries:
        row, module = rows[entry.name], model.get_submodule(entry.name)
        assert (row.method, row.kind, row.rank) == (entry.method, entry.kind, entry.rank)
        assert row.modality == entry.modality and row.step is None and row.run == tmp_path.name
        old = untouched.get_submodule(entry.name).weight
        check(row, old, dense(module), embedding=entry.kind == "embedding")
        seen.add(entry.name)
    for full in plan.full:
        owner, _, leaf = full.rpartition(".")
        old, new = untouched.get_parameter(full), model.get_parameter(full)
        module = untouched.get_submodule(owner)
        matrix = leaf == "weight" and isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding))
        row = rows[owner if matrix else full]
        assert row.method == "full" and row.modality == plan.parts.of(full)
        if matrix:
            check(row, old, new, embedding=isinstance(module, nn.Embedding))
        else:
            assert row.kind == "other" and row.delta_m is row.delta_d is row.effective_rank is row.stable_rank is None
            assert row.delta_norm == pytest.approx(float((new - old).detach().double().norm()), rel=1e-9)
        seen.add(row.name)
    assert seen == set(rows)
    kinds = {row.kind for row in rows.values()}
    assert kinds >= {"linear", "conv", "embedding"} and ("other" in kinds) == (name in ("lora", "full"))
    still = [row.name for row in rows.values() if row.kind != "other" and not row.delta_norm]  # some norms do not move
    assert not still
    whole = sum(row.delta_norm**2 for row in rows.values())
    assert sum(row.share for row in rows.values()) == pytest.approx(1)
    assert all(row.share == pytest.approx(row.delta_norm**2 / whole) for row in rows.values())
    if name == "magnitude":
        assert all((row.delta_d or 0) < 1e-13 and (row.delta_m or 0) > 0 for row in rows.values())
    layers = {row.name: row.layer for row in rows.values()}
    assert layers["model.vision_tower.embeddings.patch_embedding"] is None
    assert layers["model.vision_tower.encoder.layers.2.self_attn.q_proj"] == 2


@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning:transformers")
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_of_peft(base, tmp_path, dora):
    config = peft.LoraConfig(r=3, lora_alpha=7, use_dora=dora, target_modules=["q_proj", "down_proj", "embed_tokens"])
    config.init_lora_weights = False
    adapted: Any = peft.get_peft_model(untrained(), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.2)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no fingerprint"):
        rows = mmdora.analyze({"theirs": tmp_path})
    merged, untouched = adapted.double().merge_and_unload(), untrained()
    assert {row.method for row in rows} == {"dora" if dora else "lora"}
    assert len(rows) == 3 + 4 + 1  # the tower's queries too: PEFT matches by name
    for row in rows:
        old, new = (model.get_submodule(row.name).weight for model in (untouched, merged))
        check(row, old, new, embedding=row.kind == "embedding")


def test_another_base_is_refused_by_name(base, tmp_path):
    save_checkpoint(shrunken_llava(seed=7, vision_feature_layer=-1), tmp_path / "other")
    mmdora.save_adapter(trained(base, ADAPT["lora"], steps=1), tmp_path / "adapter", base=str(tmp_path / "other"))
    with pytest.raises(MmdoraError, match="trained on another base"):
        mmdora.analyze(tmp_path / "adapter", say=lambda line: None)


def test_a_base_that_is_a_pickle_is_refused(base, tmp_path):
    model = untrained()
    (tmp_path / "pickle").mkdir()
    model.config.save_pretrained(tmp_path / "pickle")
    torch.save(model.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    mmdora.save_adapter(trained(base, ADAPT["lora"], steps=1), tmp_path / "adapter", base=str(tmp_path / "pickle"))
    with pytest.raises(MmdoraError, match=r"cannot be read tensor by tensor: .*no model\.safetensors"):
        mmdora.analyze(tmp_path / "adapter", say=lambda line: None)


@NEEDS_PROC
def test_memory_does_not_grow_with_the_model(base, tmp_path):
    """98 matrices of at most 0.6 MB in fp32 take some of them in fp64 at a time, not all."""
    text = {**TEXT, "hidden_size": 384, "intermediate_size": 384, "num_hidden_layers": 14, "head_dim": 192}
    model = shrunken("llava", text_config=text, vision_feature_layer=-1)
    save_checkpoint(model, tmp_path / "base")
    mmdora.inject(model, {"language": {"method": "dora", "rank": 4, "targets": ["attention", "mlp"]}})
    mmdora.save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    mmdora.save_adapter(trained(base, ADAPT["dora"], steps=1), tmp_path / "small", base=str(base))
    once, work = "import mmdora; mmdora.analyze(sys.argv[2])", "rows = mmdora.analyze(sys.argv[1])"
    count, peak = peak_of(once, work, "len(rows)", tmp_path / "adapter", tmp_path / "small")
    size = sum(p.numel() * 4 for p in model.parameters())
    assert count == 14 * 7 and size > 48e6
    assert peak < size / 2, f"{peak / 1e6:.0f} MB"


@pytest.mark.filterwarnings("ignore:.*PEFT has no DoRA")
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_experts_are_one_matrix_of_all_their_rows(tmp_path, method):
    """Stored [E, I, O] here; one file tensor holds all experts."""
    mixture("aria").save_pretrained(tmp_path / "base")
    adapt = {"language": {"method": method, "rank": 2, "targets": ["experts"]}}
    adapter = write_adapter(tmp_path / "base", adapt, tmp_path / "adapter")
    untouched, merged = mixture("aria"), mixture("aria")
    mmdora.load_adapter(merged, adapter)
    mmdora.merge(merged.double())
    rows = list(mmdora.analyze(adapter))
    assert len(rows) == 4
    for row in rows:
        name = f"{row.name}_proj"
        old, new = (model.get_parameter(name).detach().double().mT.flatten(0, 1) for model in (untouched, merged))
        assert (row.kind, row.rows, row.columns) == ("experts", *old.shape)
        assert row.effective_rank is row.stable_rank is None
        assert row.delta_norm == pytest.approx(float((new - old).norm()), rel=1e-5)
        assert row.delta_m == pytest.approx(float((new.norm(dim=1) - old.norm(dim=1)).abs().mean()), rel=1e-5)
        assert row.delta_d == pytest.approx(float((1 - F.cosine_similarity(new, old, dim=1)).mean()), rel=1e-5)
