"""An export tells rounding from an error: right merges pass whatever the adapter, small mistakes do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import refuse_disk
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import mmdora
import mmdora.export.run as room
from mmdora.adapt.inject import adapted_modules, trainable_parameters
from mmdora.errors import MmdoraError
from mmdora.export import parity, tensor_parity
from mmdora.export.merge_disk import DiskMerge
from mmdora.export.merge_memory import MergedModel
from mmdora.export.rounding import Pair, merged
from mmdora.export.run import Parity, export
from mmdora.ops.reference import adapted_weight, direction

pytestmark = pytest.mark.usefixtures("few_rows")

DTYPES = ("fp32", "bf16", "fp16")
ADAPT = {part: {"method": "dora", "rank": 4} for part in ("vision", "projector", "language")}
QUERY = "language_model.model.layers.0.self_attn.q_proj"
PROJECTOR = "multi_modal_projector.linear_1"


def random_adapter(base: str, adapt: dict[str, Any], seed: int, folder: Path) -> Path:
    """An adapter moved by little, much, or so much that it outweighs the base."""
    model, _ = mmdora.load(base)
    mmdora.inject(model, adapt)
    torch.manual_seed(seed)
    size = (0.01, 0.3, 3.0)[seed % 3]
    with torch.no_grad():
        for _, parameter, _, kind in trainable_parameters(model):
            noise = size * torch.randn_like(parameter)
            parameter.mul_(1 + noise.clamp(-0.9, 3)) if kind == "magnitude" else parameter.add_(0.05 * noise)
    mmdora.save_adapter(model, folder, base=base)
    return folder


@pytest.mark.parametrize("seed", range(30))
def test_rounding_is_never_taken_for_an_error(tiny_llava, tmp_path, monkeypatch, seed):
    methods = [("dora", "lora", "magnitude", "full")[(seed >> shift) % 4] for shift in (0, 1, 2)]
    ranks = [0 if method in ("magnitude", "full") else 2 << seed % 4 for method in methods]
    adapt = {
        part: {"method": method} | ({"rank": rank} if rank else {})
        for part, method, rank in zip(("vision", "projector", "language"), methods, ranks, strict=True)
    }
    adapter = random_adapter(tiny_llava, adapt, seed, tmp_path / "adapter")
    if seed % 2:
        refuse_disk(monkeypatch)
    found: Any = export(adapter, tmp_path / "out", dtype=DTYPES[seed % 3], parity="logits", say=lambda line: None)
    assert found.tensors.beyond < tensor_parity.BEYOND / 10
    assert found.max_rel < parity.WITHIN / 2 * found.own


@pytest.fixture(scope="module")
def adapter(tiny_llava, tmp_path_factory) -> Path:
    return random_adapter(tiny_llava, ADAPT, 1, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def unmerged(adapter) -> dict[str, Tensor]:
    """What wrong merges would write: name in the file -> the base's weight, and below /lora, without the magnitude."""
    model, _ = mmdora.load(adapter)
    found = {}
    for name, module in adapted_modules(model).items():
        weight, (a, b) = module.base_weight.detach(), module.factors(module.lora_A, module.lora_B)  # type: ignore[arg-type]
        found |= {name: weight.clone(), f"{name}/lora": weight + module.scaling * (b @ a).detach()}
    return found


def spread(tensors: dict[str, Tensor], unmerged: dict[str, Tensor]) -> None:
    """One tensor off by a thousandth of its norm, everywhere."""
    weight = tensors[f"{QUERY}.weight"]
    weight += 1e-3 * weight.norm() / weight.numel() ** 0.5 * torch.randn_like(weight)


def in_one_row(tensors: dict[str, Tensor], unmerged: dict[str, Tensor]) -> None:
    """One tensor off by a thousandth of its norm, in a row that no regular sample of rows has."""
    weight = tensors[f"{QUERY}.weight"]
    weight[5] += 1e-3 * weight.norm() / weight.shape[1] ** 0.5


def one_magnitude(tensors: dict[str, Tensor], unmerged: dict[str, Tensor]) -> None:
    """The magnitude of one module forgotten."""
    name = QUERY.replace("language_model.model", "model.language_model")
    tensors[f"{QUERY}.weight"].copy_(unmerged[f"{name}/lora"])


def projector_unmerged(tensors: dict[str, Tensor], unmerged: dict[str, Tensor]) -> None:
    tensors[f"{PROJECTOR}.weight"].copy_(unmerged[f"model.{PROJECTOR}"])


def a_bit_of_a_copy(tensors: dict[str, Tensor], unmerged: dict[str, Tensor]) -> None:
    """One number of a tensor that no adapter touches is the next one of its dtype."""
    weight = tensors["language_model.model.embed_tokens.weight"]
    weight[3, 7] *= 1 + torch.finfo(weight.dtype).eps


MISTAKES = (spread, in_one_row, one_magnitude, projector_unmerged, a_bit_of_a_copy)


def make(mistake: Any, unmerged: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every way to write a checkpoint make a mistake."""
    for owner in (DiskMerge, MergedModel):

        def wrong(self: Any, folder: Path, whole: Any = owner.write) -> None:
            whole(self, folder)
            tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
            mistake(tensors, unmerged)
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})

        monkeypatch.setattr(owner, "write", wrong)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["tensors", "memory"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_small_mistake_is_never_taken_for_rounding(adapter, unmerged, tmp_path, monkeypatch, mistake, way, dtype):
    make(mistake, unmerged, monkeypatch)
    if way == "memory":
        refuse_disk(monkeypatch)
    with pytest.raises(MmdoraError, match="the merged tensors are not the trained ones; nothing was exported"):
        export(adapter, tmp_path / "out", dtype=dtype, parity="tensors", say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_the_message_names_the_tensor(adapter, unmerged, tmp_path, monkeypatch):
    make(one_magnitude, unmerged, monkeypatch)
    with pytest.raises(MmdoraError, match=rf"beyond one rounding \S+ in {QUERY}\.weight \(at most 1e-05\)"):
        export(adapter, tmp_path / "out", say=lambda line: None)
    monkeypatch.undo()
    make(a_bit_of_a_copy, unmerged, monkeypatch)
    with pytest.raises(MmdoraError, match=r"1 others differ, such as language_model\.model\.embed_tokens\.weight"):
        export(adapter, tmp_path / "out", say=lambda line: None)


@pytest.mark.parametrize("mistake", [spread, one_magnitude, projector_unmerged])
def test_logits_alone_find_a_mistake_in_fp32(adapter, unmerged, tmp_path, monkeypatch, mistake):
    make(mistake, unmerged, monkeypatch)
    monkeypatch.setattr(parity.TensorParity, "check", lambda self: None)
    with pytest.raises(
        MmdoraError, match=r"the merged model is not the trained one; .*at most 8 times the model's own"
    ):
        export(adapter, tmp_path / "out", dtype="fp32", say=lambda line: None)


@pytest.mark.parametrize("way", ["tensors", "memory"])
def test_it_is_compared_with_what_was_trained_and_not_with_what_was_loaded(tiny_llava, tmp_path, monkeypatch, way):
    """A file with two tensors for one shared parameter: only one of them can be in the model."""
    adapter = random_adapter(tiny_llava, {"language": {"method": "full"}}, 0, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    [head] = [name for name in tensors if name.endswith("lm_head.weight")]
    save_file({**tensors, head: tensors[head] + 1}, adapter / "adapter_model.safetensors", {"format": "pt"})
    facts = json.loads((adapter / "mmdora.json").read_text())
    # An adapter of an earlier mmdora has no checksums, which would tell of the change first.
    kept = {key: value for key, value in facts.items() if key not in ("files", "checksum", "sha256")}
    (adapter / "mmdora.json").write_text(json.dumps(kept))
    if way == "memory":
        refuse_disk(monkeypatch)
    with pytest.raises(MmdoraError, match="lm_head"):
        export(adapter, tmp_path / "out", parity="tensors", say=lambda line: None)


def test_a_model_that_lost_a_tensor_of_its_adapter_is_refused(adapter, tmp_path, monkeypatch):
    whole = room.load

    def careless(source: Any) -> Any:
        model, processor = whole(source)
        with torch.no_grad():
            next(iter(adapted_modules(model).values())).lora_B.zero_()  # type: ignore[union-attr]
        return model, processor

    refuse_disk(monkeypatch)
    monkeypatch.setattr(room, "load", careless)
    with pytest.raises(MmdoraError, match=r"lora_B\.weight: the model does not hold what the file does"):
        export(adapter, tmp_path / "out", say=lambda line: None)


def test_an_export_says_what_was_compared(adapter, tmp_path):
    found = export(adapter, tmp_path / "out", dtype="bf16", parity="logits", say=lambda line: None)
    assert isinstance(found, Parity)
    text = str(found)
    assert text.startswith("bf16 on 2 rows (drawn pictures): logits differ by max-rel ")
    assert "times the model's own rounding of" in text and "each number against the equations in float64" in text


def test_the_comparison_costs_one_product():
    """In float64 a product takes longer than all else in an export, so the largest terms of a row are looked at only
    where they matter."""
    torch.manual_seed(0)
    weight, a, b, m = torch.randn(2048, 512), torch.randn(32, 512), torch.randn(2048, 32), torch.rand(2048)
    written = adapted_weight(weight, a, b, m, 0.5).bfloat16()
    with FlopCounterMode(display=False) as products:
        error, beyond = merged(Pair("weight", written, weight, (a, b, m), 0.5), torch.bfloat16)
    assert products.get_total_flops() < 1.5 * 2 * b.numel() * a.shape[1]
    assert error < 2**-8 and beyond < 1e-6


def test_the_largest_error_is_found_wherever_it_is():
    """The rows that were passed over are no worse than the worst: the same as all rows with all their terms."""
    torch.manual_seed(0)
    weight, a, b, m = torch.randn(2048, 512), torch.randn(32, 512), torch.randn(2048, 32), torch.rand(2048)
    written = adapted_weight(weight, a, b, m, 0.5)
    rows = torch.arange(0, 2048, 7)
    written[rows, rows % 512] += torch.randn(len(rows)) * m[rows]
    _, beyond = merged(Pair("weight", written, weight, (a, b, m), 0.5), torch.float32)
    fine, low, up, size = (tensor.double() for tensor in (weight, a, b, m))
    want, sums = adapted_weight(fine, low, up, size, 0.5), direction(fine, low, up, 0.5)
    terms = direction(fine.abs(), low.abs(), up.abs(), 0.5).amax(1)
    ratios = (written.double() - want).abs().amax(1) / (size / sums.norm(dim=1) * terms)
    assert beyond == pytest.approx(float(ratios.max()), rel=1e-5)
