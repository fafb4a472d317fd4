"""Fused experts: the equations in both orientations and every implementation, merging, dtypes, and what is refused."""

import copy
import pickle
from typing import Any

import pytest
import torch
from expert_cases import CLASSES, EXPERTS, IMPLEMENTATIONS, SIZES, Dense, adapt, experts, inputs, shake
from layer_cases import METHODS, max_rel
from torch import nn

from mmdora.errors import MmdoraError
from mmdora.layers import expert_weights, kind_of
from mmdora.train.ledger import Ledger

METHOD = pytest.mark.parametrize("method", METHODS)
CASES = [("llama4", "eager")] + [(name, way) for name in CLASSES if name != "llama4" for way in IMPLEMENTATIONS]
CASE = pytest.mark.parametrize(("name", "way"), CASES)


def trained(module: Any) -> dict[tuple[str, str], Any]:
    names = ("lora_A", "lora_B", "magnitude")
    found = {(own.leaf, name): getattr(own, name) for own in module.adapters() for name in names}
    return {key: parameter for key, parameter in found.items() if parameter is not None}


@CASE
@METHOD
def test_starts_as_the_base_bit_by_bit(name, way, method):
    base = experts(name, implementation=way)
    expected = base(*inputs(name))
    found = adapt(base, method)(*inputs(name))
    # batched_mm gathers a matrix for each token, which an adapter does not; there the order of the sums differs.
    close = torch.testing.assert_close if way == "batched_mm" else torch.equal
    assert close(found, expected) in (True, None)


@CASE
@METHOD
@pytest.mark.parametrize("width", SIZES.values(), ids=SIZES)
def test_outputs_and_gradients_are_the_dense_equations(name, way, method, width):
    module = shake(adapt(experts(name, width, way), method))
    exact = Dense(module)
    given, *routing = inputs(name)
    x: Any = given.requires_grad_()
    x64: Any = given.detach().double().requires_grad_()
    y, expected = module(x, *routing), exact(x64, *routing)
    assert max_rel(y, expected) <= 1e-5
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient.double())
    assert max_rel(x.grad, x64.grad) <= 1e-5
    for key, parameter in trained(module).items():
        assert max_rel(parameter.grad, exact.own[key].grad) <= 1e-5, key
        if name != "llama4":  # Its forward gives every expert all tokens.
            assert not parameter.grad[EXPERTS - 1].any(), key


@METHOD
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("width", SIZES.values(), ids=SIZES)
def test_merges_into_the_very_parameter_and_unloads(name, width, method):
    base = experts(name, width)
    kept = copy.deepcopy(base)
    module = shake(adapt(base, method))
    exact, expected, parameter = Dense(module).weights(), module(*inputs(name)), base.down_proj
    twin = copy.deepcopy(module)
    for own in list(twin.adapters()):
        plain = own.unload()
    assert type(plain) is CLASSES[name] and torch.equal(plain(*inputs(name)), kept(*inputs(name)))
    for own in list(module.adapters()):
        assert max_rel(own.merged_weight(), exact[own.leaf]) <= 1e-6
        plain = own.merge()
    assert type(plain) is CLASSES[name] and plain.down_proj is parameter and list(plain._modules) == list(kept._modules)
    assert plain.state_dict().keys() == kept.state_dict().keys()
    assert max_rel(plain(*inputs(name)), expected) <= 1e-5
    assert all(max_rel(plain.get_parameter(leaf), exact[leaf]) <= 1e-6 for leaf in exact)


def test_one_parameter_of_two_may_be_adapted():
    module = shake(adapt(experts("gpt_oss"), leaves=("down",)))
    assert [own.leaf for own in module.adapters()] == ["down_proj"]
    assert max_rel(module(*inputs("gpt_oss")), Dense(module)(*inputs("gpt_oss"))) <= 1e-5


def test_names_copies_and_attributes_are_the_bases():
    base = experts("gpt_oss")
    names = list(base.state_dict())
    module = shake(adapt(base))
    assert [name for name in module.state_dict() if name.count(".") == 0] == names
    assert (module.num_experts, module.alpha) == (EXPERTS, experts("gpt_oss").alpha)
    expected = module(*inputs("gpt_oss"))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(*inputs("gpt_oss")), expected)
        twin.load_state_dict({name: torch.zeros_like(value) for name, value in twin.state_dict().items()})
        assert torch.equal(module(*inputs("gpt_oss")), expected) and not twin(*inputs("gpt_oss")).any()


@METHOD
@pytest.mark.parametrize("way", IMPLEMENTATIONS)
def test_half_precision(method, way):
    """A base in bf16: adapters stay in fp32, and outputs are within a few roundings of the exact ones."""
    module = shake(adapt(experts("qwen3_vl_moe", implementation=way).to(torch.bfloat16), method).to(torch.bfloat16))
    x, chosen, weights = inputs("qwen3_vl_moe", dtype=torch.bfloat16)
    y = module(x, chosen, weights)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and {p.dtype for p in trained(module).values()} == {torch.float32}
    assert max_rel(y, Dense(module)(x, chosen, weights)) <= 2**-5
    module.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert max_rel(module(x.float(), chosen, weights.float()), Dense(module)(x, chosen, weights)) <= 2**-5


@pytest.mark.parametrize("mode", ["branch", "reference"])
@pytest.mark.parametrize("way", ["eager", "grouped_mm"])
def test_dropout_acts_in_training_alone(mode, way):
    base = experts("qwen3_vl_moe", implementation=way)
    module = shake(adapt(base, dropout=0.5, dropout_mode=mode))
    given = inputs("qwen3_vl_moe", tokens=20)
    exact = module(*given)
    module.train()
    module.zero_grad()
    first, second = module(*given), module(*given)
    first.sum().backward()
    assert not torch.equal(first, second) and all(p.grad is not None for p in trained(module).values())
    module.eval()
    assert torch.equal(module(*given), exact)
    # Dropout before the last product changes the mean of many outputs for the same tokens by its noise alone.
    down = shake(adapt(experts("qwen3_vl_moe", implementation=way), leaves=("down",), dropout=0.5, dropout_mode=mode))
    few, draws = inputs("qwen3_vl_moe", tokens=3), 2000
    exact = down(*few)
    drawn = down.train()(*(tensor.repeat(draws, 1) for tensor in few)).unflatten(0, (draws, 3))
    assert ((drawn.mean(0) - exact).abs() <= 6 * drawn.std(0) / draws**0.5 + 1e-5).all() and drawn.std(0).min() > 1e-3


def test_no_matrix_is_copied_for_backward():
    """Forward keeps rows of inputs and outputs for backward, and the base's own parameters; no W' and no B A."""
    module = shake(adapt(experts("qwen3_vl_moe", 16, "grouped_mm"), "dora"))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(*inputs("qwen3_vl_moe", tokens=5))
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    largest = max(t.untyped_storage().nbytes() for t in kept if t.untyped_storage().data_ptr() not in own)
    assert largest <= 4 * 5 * 2 * 32  # tokens x chosen experts x 2I


def test_norms_follow_what_is_written():
    module = shake(adapt(experts("gpt_oss")))
    x = inputs("gpt_oss")
    module(*x)
    with torch.no_grad():
        for own in module.adapters():
            own.lora_B.mul_(2)
    assert max_rel(module(*x), Dense(module)(*x)) <= 1e-5


def test_zero_rows_learn_and_give_no_nan():
    base = experts("qwen3_vl_moe")
    with torch.no_grad():
        base.down_proj[1, 5] = 0
    module = adapt(base)
    y = module(*inputs("qwen3_vl_moe"))
    y.square().sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() for p in trained(module).values())


def test_other_uses_of_an_adapted_parameter_are_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.down_proj = nn.Parameter(torch.randn(3, 8, 8))

        def forward(self, x, index):
            if index == 0:
                return x @ self.down_proj[0] * self.down_proj.mean()
            return nn.functional.linear(x, self.down_proj[index])

    class Experts(Odd):
        def forward(self, x, index):
            return super().forward(x, index) if index < 2 else nn.functional.linear(x, self.down_proj[index])

    assert expert_weights("mlp", Odd()) == {} and not expert_weights("odd", nn.Linear(2, 2))
    (weight,) = expert_weights("experts", Odd()).values()
    assert "does not show which axis of down_proj is its output" in problem(weight)
    module = adapt(Experts())
    assert module(torch.randn(2, 8), 2).shape == (2, 8)
    with pytest.raises(MmdoraError, match=r"the other way round|reads its mean"):
        module(torch.randn(2, 8), 0)


def test_quantised_and_hooked_experts_are_refused():
    base = experts("gpt_oss")
    base.forward = base.forward
    assert all("was replaced" in problem(weight) for weight in weights(base))
    quantised = experts("gpt_oss").to(torch.float8_e4m3fn)
    assert all("quantised" in problem(weight) for weight in weights(quantised))


def problem(weight: Any) -> str:
    kind: Any = kind_of(weight)
    return str(kind.problem(weight))


def weights(base: nn.Module) -> list[Any]:
    return list(expert_weights("experts", base).values())


@pytest.mark.parametrize("way", ["grouped_mm", "batched_mm"])
def test_the_ledger_of_memory_gives_each_expert_its_share(way):
    """Without values there is no routing; with them, the same step takes as much memory."""
    peaks = []
    for real in (True, False):
        module = shake(adapt(experts("qwen3_vl_moe", 16, way), "dora"))
        x, chosen, weights = inputs("qwen3_vl_moe", tokens=400)
        with Ledger() as ledger:
            chosen = chosen if real else torch.rand(400, EXPERTS).topk(2).indices
            ledger.start(ledger.live)
            module(x.clone(), chosen, weights).sum().backward()
        assert all(parameter.grad.shape == parameter.shape for parameter in trained(module).values())
        peaks.append(ledger.peak)
    assert 0.8 < peaks[1] / peaks[0] < 1.25
