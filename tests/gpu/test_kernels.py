"""The CUDA path of the adapted linear: Triton kernels against plain torch on CUDA and float64."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from ops.cases import dense, fused, in_float64, max_rel
from torch import nn

from mmdora.ops import backend, norm
from mmdora.ops.compose import scale_and_reduce
from mmdora.ops.linear import adapted_linear, scale

METHOD = pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(scope="module", autouse=True)
def _cuda() -> None:
    assert torch.cuda.is_available(), "make gpu-test needs a CUDA device"
    assert backend.on_triton(torch.empty(1, device="cuda")), "the kernels need Triton, which torch brings on Linux"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From here on, plain torch on CUDA."""
    return lambda: monkeypatch.setattr(backend, "on_triton", lambda tensor: False)


def layer(method: str, dtype: torch.dtype, rows: int, columns: int, tokens: int, rank: int = 128) -> dict[str, Any]:
    """A layer and its input in the proportions of a model in training, on CUDA; the adapter in fp32."""
    weight = (torch.randn(rows, columns, device="cuda") / columns**0.5).to(dtype)
    t: dict[str, Any] = dict.fromkeys(("lora_A", "lora_B", "magnitude"))
    t["x"] = torch.randn(1, tokens, columns, device="cuda").to(dtype).requires_grad_()
    t["weight"], t["bias"] = weight, torch.randn(rows, device="cuda").to(dtype) if method == "dora" else None
    if method != "magnitude":
        t["lora_A"] = (torch.randn(rank, columns, device="cuda") / columns**0.5).requires_grad_()
        t["lora_B"] = (torch.randn(rows, rank, device="cuda") * 0.2 / rank**0.5).requires_grad_()
    if method != "lora":
        length = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
        t["magnitude"] = (length * (0.8 + 0.4 * torch.rand(rows, device="cuda"))).requires_grad_()
    return t


def step(t: dict[str, Any], gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output and gradients, under autocast if x is bf16."""
    for tensor in t.values():
        if tensor is not None:
            tensor.grad = None
    half = t["x"].dtype == torch.bfloat16
    with torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
        y = fused(t)
    y.backward(gradient)
    names = [name for name, tensor in t.items() if tensor is not None and tensor.requires_grad]
    return {"y": y.detach(), **{name: t[name].grad for name in names}}


@METHOD
@DTYPE
@pytest.mark.parametrize(
    "shape", [(40, 24, 15, 3), (129, 257, 65, 17), (4096, 4096, 2048, 128), (11008, 4096, 2048, 128)], ids=str
)
def test_triton_equals_torch_and_float64(method, dtype, shape, plain):
    rows, columns, tokens, rank = shape
    t = layer(method, dtype, rows, columns, tokens, rank)
    gradient = torch.randn(1, tokens, rows, device="cuda").to(dtype)
    kernels = step(t, gradient)
    plain()
    torch_ = step(t, gradient)
    # A CPU would take minutes for the large ones.
    device = "cpu" if rows < 1000 else "cuda"
    exact: dict[str, Any] = {name: None if v is None else v.detach().to(device) for name, v in in_float64(t).items()}
    for name in kernels.keys() - {"y"}:
        exact[name].requires_grad_()
    y = dense(exact)
    y.backward(gradient.to(device).double())
    between, bound = (1e-5, 1e-5) if dtype == torch.float32 else (2**-7, 2**-6)
    for name, found in kernels.items():
        assert found.isfinite().all() and found.dtype == torch_[name].dtype, name
        assert max_rel(found, torch_[name]) < between, name
        assert max_rel(found.to(device), y if name == "y" else exact[name].grad) < bound, name


@pytest.mark.parametrize("tiny", [0.0, 1e-9, -1e-4])
def test_magnitude_near_zero_has_its_gradient(tiny, plain):
    t = layer("dora", torch.bfloat16, 300, 200, 70, 16)
    with torch.no_grad():
        t["magnitude"][7] = tiny
    gradient = torch.randn(1, 70, 300, device="cuda").bfloat16()
    found = step(t, gradient)["magnitude"]
    plain()
    assert found[7] != 0 and max_rel(found, step(t, gradient)["magnitude"]) < 2**-7


def test_gradcheck_in_float64():
    t: dict[str, Any] = {
        name: None if v is None else v.detach().double() for name, v in layer("dora", torch.float32, 5, 4, 6, 2).items()
    }
    n = torch.rand(5, dtype=torch.float64, device="cuda") + 1

    def call(x, A, B, m):
        return adapted_linear(x, t["weight"], t["bias"], A, B, 1.5, m, scale(m, n))

    inputs = [t[name].requires_grad_() for name in ("x", "lora_A", "lora_B", "magnitude")]
    assert torch.autograd.gradcheck(call, inputs)


def test_the_same_bits_each_time():
    t = layer("dora", torch.bfloat16, 4096, 4096, 2048)
    gradient = torch.randn(1, 2048, 4096, device="cuda").bfloat16()
    first = {name: tensor.clone() for name, tensor in step(t, gradient).items()}
    second = step(t, gradient)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_magnitude_change_of_2_to_minus_10_shows():
    x, weight = torch.randn(64, 512, device="cuda").bfloat16(), torch.randn(1024, 512, device="cuda").bfloat16()
    n = norm.squared_norm(weight).sqrt()

    def call(m):
        return adapted_linear(x, weight, None, None, None, 1.0, m, scale(m, n))

    changed = (call(n) != call(n * (1 + 2**-10))).float().mean().item()
    assert 0.05 < changed < 0.5


@pytest.mark.parametrize("setting", ["highest", "high"])
def test_norm_of_a_bf16_base(setting):
    """To 1e-5 of float64 whatever torch's setting for TF32, rows near cancellation too."""
    before = torch.get_float32_matmul_precision()
    weight = (torch.randn(11008, 4096, device="cuda") / 64).bfloat16()
    lora_A, lora_B = torch.randn(128, 4096, device="cuda") / 64, torch.randn(11008, 128, device="cuda") / 2 / 128**0.5
    lora_A[3], lora_B[33] = weight[33], 0
    lora_B[33, 3] = -0.495
    weight[5], lora_B[5] = 0, 0
    exact = torch.linalg.vector_norm(weight.cpu().double() + 2 * lora_B.cpu().double() @ lora_A.cpu().double(), dim=1)
    torch.set_float32_matmul_precision(setting)
    try:
        found = norm.row_norm(weight, lora_A, lora_B, 2.0, norm.squared_norm(weight), exact=False).cpu()
    finally:
        torch.set_float32_matmul_precision(before)
    others = torch.arange(11008) != 5
    assert found[5] == 0 and ((found - exact).abs() / exact)[others].max() < 1e-5


@pytest.mark.parametrize("path", ["triton", "torch"])
def test_no_copy_of_the_weight_and_no_dense_update(path, plain):
    """Few tokens, so that a copy of W0 in any dtype, or B A, would stand out: the step takes less than W0 does."""
    if path == "torch":
        plain()
    t = layer("dora", torch.bfloat16, 11008, 4096, 64, 16)
    gradient = torch.randn(1, 64, 11008, device="cuda").bfloat16()
    step(t, gradient)  # cuBLAS takes its workspace once
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(t, gradient)
    assert torch.cuda.max_memory_allocated() - before < t["weight"].nbytes


def test_a_layer_keeps_what_it_should():
    """Between forward and backward: x, which was there, h and y in bf16, and a few rows of numbers."""
    tokens, rows, rank = 4096, 4096, 64
    t = layer("dora", torch.bfloat16, rows, 4096, tokens, rank)
    step(t, torch.zeros(1, tokens, rows, device="cuda", dtype=torch.bfloat16))
    t["x"].grad = t["lora_A"].grad = t["lora_B"].grad = t["magnitude"].grad = None
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        y = fused(t)
    kept = torch.cuda.memory_allocated() - before
    assert y.nbytes <= kept <= y.nbytes + tokens * rank * 2 + 16 * rows * 4 + 2**21


def test_more_elements_than_32_bits_count():
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs 24 GB")
    g = torch.ones(2**19 + 1, 4096, device="cuda", dtype=torch.bfloat16)
    g[-1] = 3
    c = torch.rand(4096, device="cuda")
    scaled, total = scale_and_reduce(g, g, c, None)
    assert torch.equal(scaled[-1], (3 * c).bfloat16()) and torch.equal(scaled[-2], c.bfloat16())
    assert (total == 2**19 + 9).all()


@DTYPE
def test_compiles_without_a_graph_break(dtype):
    class Layer(nn.Module):
        def forward(self, x, t):
            with torch.autocast("cuda", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
                return fused({**t, "x": x}, keep=True, exact=False)

    gradient = torch.randn(1, 70, 300, device="cuda").to(dtype)
    found = []
    for run in (Layer(), torch.compile(Layer(), fullgraph=True)):
        torch.manual_seed(3)
        t = layer("dora", dtype, 300, 200, 70, 16)
        y = run(t["x"], {name: tensor for name, tensor in t.items() if name != "x"})
        y.backward(gradient)
        found.append([y, *(t[name].grad for name in ("x", "lora_A", "lora_B", "magnitude"))])
    for eager, compiled in zip(*found, strict=True):
        assert max_rel(compiled, eager) < (1e-5 if dtype == torch.float32 else 2**-6)


def test_the_device_of_the_tensors_is_used():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    t = layer("dora", torch.bfloat16, 300, 200, 70, 16)
    gradient = torch.randn(1, 70, 300, device="cuda").bfloat16()
    first = step(t, gradient)
    moved = {n: None if v is None else v.detach().to("cuda:1").requires_grad_(v.requires_grad) for n, v in t.items()}
    for name, tensor in step(moved, gradient.to("cuda:1")).items():
        assert tensor.device.index == 1 and max_rel(tensor.cpu(), first[name].cpu()) < 2**-7
