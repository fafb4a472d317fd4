"""The scale is computed once per optimizer step, and anew right after every write."""

import copy

import pytest
import torch
from layer_cases import BASES, Dense, inputs, make, max_rel, output, shake
from scale_cases import DATA_WRITES, WRITES, Tower, trained
from torch.utils.checkpoint import checkpoint

from mmdora.adapter_files.tensors import to_file
from mmdora.errors import MmdoraError
from mmdora.layers import stamp
from mmdora.layers.stamp import Stamp
from mmdora.ops import norm

KIND = pytest.mark.parametrize("kind", BASES)
pytestmark = pytest.mark.usefixtures("fresh_compiler")


@KIND
def test_once_per_step_under_accumulation_and_both_kinds_of_recomputation(kind, norms):
    _, layer = make(kind)
    optimizer = torch.optim.SGD(trained(layer), lr=0.1)
    x = inputs(kind)
    for step in (1, 2):
        output(layer, x).sum().backward()
        checkpoint(output, layer, x, use_reentrant=False).sum().backward()  # pyright: ignore
        if kind != "embedding":  # the reentrant kind needs an input that takes a gradient
            asking = x.clone().requires_grad_()
            checkpoint(output, layer, asking, use_reentrant=True).sum().backward()  # pyright: ignore
        with torch.autocast("cpu", torch.bfloat16):
            checkpoint(output, layer, x, use_reentrant=False).sum().backward()  # pyright: ignore
        with torch.no_grad():
            output(layer, x)
        assert len(norms) == step
        optimizer.step()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_through_recomputation_are_the_same(reentrant):
    results = []
    for recompute in (False, True):
        tower = Tower()
        x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        for block in tower.blocks:
            y = checkpoint(block, x, use_reentrant=reentrant) if recompute else block(x)
            y.square().sum().backward()  # pyright: ignore
        results.append([x.grad, *(p.grad for p in trained(tower.blocks))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize(
    ("kind", "compiled"), [("linear", True), *((kind, False) for kind in BASES)], ids=["compiled", *BASES]
)
def test_right_after_every_write(kind, write, compiled):
    _, layer = make(kind)
    shake(layer)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    x = inputs(kind)
    for _ in range(2):
        output(call, x)
        write(layer)
        assert max_rel(output(call, x), Dense(layer)(x)) <= 1e-5


LOOKS = {
    "at once": lambda layer: None,
    "eval": lambda layer: layer.eval(),
    "train": lambda layer: layer.eval() and layer.train(),
    "state_dict": lambda layer: layer.state_dict(),
}


@pytest.mark.parametrize("write", DATA_WRITES.values(), ids=DATA_WRITES)
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@KIND
def test_a_write_through_data_is_seen(kind, look, write, request):
    """At once on a CPU, if one of the values that are looked at changes; else from the next switch or saving on."""
    _, layer = make(kind)
    shake(layer)
    x = inputs(kind)
    output(layer, x)
    with torch.no_grad():
        write(layer)
    look(layer)
    found = max_rel(output(layer, x), Dense(layer)(x))
    if "at once-one value" in request.node.name and layer.magnitude.numel() > 16:
        assert found > 1e-2  # nobody looks at that value
    else:
        assert found <= 1e-5


@pytest.mark.parametrize("write", DATA_WRITES.values(), ids=DATA_WRITES)
@KIND
def test_merging_and_saving_see_a_write_through_data(kind, write):
    """Also the LoRA that is saved beside a DoRA, with its norm as magnitude."""
    for method in ("dora", "lora"):
        if method == "lora" and write in (DATA_WRITES["init"], DATA_WRITES["one value"]):
            continue
        _, layer = make(kind, method)
        shake(layer)
        x = inputs(kind)
        output(layer, x)
        to_file(layer, magnitude=True)
        with torch.no_grad():
            write(layer)
        layer.refresh()  # as `save_adapter` does
        exact = Dense(layer)
        magnitude = to_file(layer, magnitude=True)["lora_magnitude_vector"].flatten()
        if method == "lora":
            assert max_rel(magnitude, torch.linalg.vector_norm(layer.matrix(exact.weight()), dim=1)) <= 1e-5
        assert max_rel(output(copy.deepcopy(layer).merge(), x), exact(x)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(5,), (24, 40), (10, 6, 3, 3), (0, 4)], ids=str)
def test_the_look_at_values_sees_whole_writes_in_any_layout(shape, dtype):
    for layout in (torch.randn(shape), torch.randn(shape).transpose(0, -1), torch.zeros(()).expand(shape)):
        tensor = layout.to(dtype)
        stamp = Stamp([tensor], 0)
        assert stamp.fits([tensor], 0)
        if tensor.numel() and tensor.is_contiguous():
            tensor.data.add_(1)
            assert not stamp.fits([tensor], 0)


def test_memory_that_runs_out_leaves_no_stale_scale(monkeypatch):
    _, layer = make("linear")
    x = inputs("linear")
    output(layer, x)
    shake(layer)

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(norm, "row_norm", full)
        output(layer, x)
    assert max_rel(output(layer, x), Dense(layer)(x)) <= 1e-5


def test_zero_3_gathers_into_any_memory(norms, monkeypatch):
    """DeepSpeed swaps the data of parameters it has marked; neither version nor address nor a hook tells of a write."""
    _, layer = make("linear")
    for parameter in layer.parameters():
        parameter.ds_id = 0
    monkeypatch.setattr(stamp, "_readable", lambda tensor: False)
    monkeypatch.setattr(Stamp, "_is_of", lambda self, tensors: True)
    x = inputs("linear")
    for value in (1.0, 3.0, 0.5):
        layer.lora_B.data.fill_(value)
        assert max_rel(output(layer, x), Dense(layer)(x)) <= 1e-5
    assert len(norms) == 3


def test_a_scale_of_inference_mode_can_be_trained_on():
    _, layer = make("linear")
    with torch.inference_mode():
        before = layer(inputs("linear"))
    y = layer(inputs("linear"))
    y.sum().backward()
    assert torch.equal(y, before) and layer.magnitude.grad is not None


def test_a_magnitude_in_half_precision_is_refused():
    _, layer = make("linear")
    layer.magnitude.data = layer.magnitude.data.bfloat16()
    with pytest.raises(MmdoraError, match="param_dtype"):
        layer(inputs("linear"))
