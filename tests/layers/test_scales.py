"""The scale: computed once per optimizer step, right after every write, in eager mode and in compiled graphs."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from layer_cases import BASES, Dense, adapted, inputs, make, max_rel, output, shake, weight
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmdora.adapter_files.tensors import to_file
from mmdora.errors import MmdoraError
from mmdora.layers import kept, scales, stamp
from mmdora.layers.stamp import Stamp
from mmdora.ops import linear, norm

KIND = pytest.mark.parametrize("kind", BASES)


@pytest.fixture
def norms(monkeypatch) -> list[int]:
    """One element for each norm that is computed."""
    calls, original = [], norm.row_norm
    monkeypatch.setattr(norm, "row_norm", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    return calls


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


class Block(nn.Module):
    """One adapted module of each method, as a transformer block has them."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.up = adapted(nn.Linear(24, 40), "dora", dropout=dropout)
        self.gate = adapted(nn.Linear(24, 40, bias=False), "lora", dropout=dropout)
        self.down = adapted(nn.Linear(40, 24), "magnitude")

    def forward(self, x):
        y = torch.nn.functional.layer_norm(x, (24,))
        return x + self.down(self.up(y) * torch.sigmoid(self.gate(y)))


class Tower(nn.Module):
    """Ids and pixels in, blocks over them; `compiled` compiles each block by itself."""

    def __init__(self, depth: int = 2):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = adapted(nn.Embedding(30, 24))
        self.patches = adapted(nn.Conv2d(3, 24, 4, stride=4))
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        for module in self.modules():
            if hasattr(module, "lora_A"):
                shake(module)

    def forward(self, ids, pixels):
        x = torch.cat([self.patches(pixels).flatten(2).transpose(1, 2), self.tokens(ids)], 1)
        for block in self.blocks:
            x = block(x)
        return x


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 30, (2, 5), generator=generator), torch.randn(2, 3, 8, 8, generator=generator)


def losses(call, module, steps: int = 3, **options: Any) -> list[float]:
    optimizer = torch.optim.AdamW(trained(module), lr=0.05, **options)
    found = []
    for _ in range(steps):
        loss = call(*batch()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


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


WRITES = {
    "AdamW foreach": lambda layer: step(layer, foreach=True),
    "AdamW loop": lambda layer: step(layer, foreach=False),
    "AdamW fused": lambda layer: step(layer, fused=True),
    "AdamW compiled": lambda layer: step(layer, compiled=True),
    "in place": lambda layer: shake(layer, seed=5),
    "load": lambda layer: layer.load_state_dict({k: v * 1.1 + 0.1 for k, v in layer.state_dict().items()}),
    "load assigned": lambda layer: layer.load_state_dict({k: 2 * v for k, v in layer.state_dict().items()}, True, True),
    "base": lambda layer: (weight(layer).data.mul_(2), layer.refresh()),
    "base in place": lambda layer: in_place(weight(layer)),
    "data swapped": lambda layer: setattr(layer.lora_B, "data", layer.lora_B.data * 3),
    "data and refresh": lambda layer: (layer.lora_A.data.normal_(), layer.refresh()),
    "replaced": lambda layer: setattr(layer, "magnitude", nn.Parameter(layer.magnitude.detach() * 2)),
    "float64 and back": lambda layer: layer.double().float(),
}  # fmt: skip


def step(layer, *, compiled=False, **options):
    optimizer = torch.optim.AdamW(trained(layer), lr=0.1, **options)
    for parameter in trained(layer):
        parameter.grad = torch.randn_like(parameter)
    if compiled:
        torch.compile(optimizer.step, backend="aot_eager", fullgraph=False)()
    else:
        optimizer.step()


def in_place(parameter):
    with torch.no_grad():
        parameter.mul_(2)


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


def own_optimizer(layer):
    """What a hand-written optimizer does: no step of torch's, no version raised."""
    for parameter in trained(layer):
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)


DATA_WRITES = {
    "copy": lambda layer: layer.lora_B.data.copy_(torch.randn_like(layer.lora_B)),
    "init": lambda layer: nn.init.normal_(layer.magnitude.data, 3.0),
    "moving average": lambda layer: [p.data.lerp_(torch.randn_like(p), 0.5) for p in trained(layer)],
    "own optimizer": own_optimizer,
    "foreach": lambda layer: torch._foreach_add_([p.data for p in trained(layer)], 0.7),  # pyright: ignore
    "base": lambda layer: weight(layer).data.mul_(2),
    "one value": lambda layer: layer.magnitude.data[1].mul_(3),
}  # fmt: skip

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


@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=["foreach", "fused"])
def test_compiled_training_is_the_eager_one(options, norms):
    eager = losses(tower := Tower(), tower, **options)
    assert eager[2] < eager[0]
    before, tower = len(norms), Tower()
    compiled = losses(torch.compile(tower, backend="aot_eager", fullgraph=True), tower, **options)
    assert max(abs(a - b) / abs(a) for a, b in zip(eager, compiled, strict=True)) <= 1e-6
    assert len(norms) == 2 * before  # one for each module and step, compiled too


def test_no_break_and_no_recompilation():
    tower = Tower()
    explanation = torch._dynamo.explain(tower)(*batch())
    assert (explanation.graph_break_count, explanation.graph_count) == (0, 1), explanation.break_reasons
    call = torch.compile(tower, backend="aot_eager", fullgraph=True)
    losses(call, tower, steps=2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        losses(call, tower, steps=3)
        shake(tower.tokens)
        call(*batch())


def test_one_graph_serves_all_blocks():
    """More blocks than dynamo would compile one by one (`recompile_limit`)."""
    tower, same = Tower(depth=10), Tower(depth=10)
    for block in tower.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        found = losses(tower, tower)
    assert max(abs(a - b) / abs(a) for a, b in zip(losses(same, same), found, strict=True)) <= 1e-6


def test_the_operator_is_what_torch_takes_it_for():
    _, layer = make("linear")
    before = layer(inputs("linear"))
    parts = (layer.scales.slot, *(p.detach() for p in (layer.weight, layer.lora_A, layer.lora_B, layer.magnitude)))
    torch.library.opcheck(torch.ops.mmdora.scale, parts)
    for result in torch.ops.mmdora.scale(*parts):
        result.zero_()  # a compiler may reuse the memory
    assert torch.equal(layer(inputs("linear")), before)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_other_parameters_for_one_call_leave_no_trace(compiled):
    _, layer = make("linear")
    shake(layer)
    x = inputs("linear")

    def call(lora_B):
        return torch.func.functional_call(layer, {"lora_B": lora_B}, (x,))

    if compiled:
        call = torch.compile(call, backend="aot_eager", fullgraph=True)
    before, expected = layer(x), {}
    for factor in (2.0, 3.0):
        twin = copy.deepcopy(layer)
        twin.lora_B.data.mul_(factor)
        expected[factor] = twin(x)
    memory = torch.empty_like(layer.lora_B)  # the second lies where the first lay, in the same version
    for factor in (2.0, 3.0):
        memory.data.copy_(layer.lora_B.data * factor)
        assert max_rel(call(memory.data), expected[factor]) <= 1e-6
    assert torch.equal(layer(x), before)


@pytest.fixture
def looks(monkeypatch) -> Iterator[list[int]]:
    """As on a GPU, where reading a value waits for the device: how many c each look was at."""
    others = dict(kept.known)  # The layers that other tests still hold would be among those that learn.
    kept.known.clear()
    counts, original = [], linear.small
    monkeypatch.setattr(linear, "small", lambda factors: counts.append(len(factors)) or original(factors))
    monkeypatch.setattr(kept, "_waits", lambda device: True)
    yield counts
    kept.known.update(others)


def test_one_look_at_the_device_per_step(looks, norms):
    tower, frozen, answering = Tower(), Tower().requires_grad_(False), Tower().eval()
    losses(tower, tower)
    magnitudes = sum(name.endswith("magnitude") for name, _ in tower.named_parameters())
    assert looks == [magnitudes] * 3 and len(norms) == 3 * 4  # a magnitude alone has no norm to compute
    del frozen, answering


def test_what_a_look_for_all_says_of_each(looks):
    first, second = adapted(nn.Linear(6, 5), "dora"), adapted(nn.Linear(6, 5), "dora")
    second.magnitude.data[2] = 1e-6
    x = torch.randn(3, 6)
    first(x)
    assert looks == [2]
    assert [scales.current(layer).keep for layer in (first, second)] == [False, True]  # pyright: ignore
    second.magnitude.data[2] = 1.0
    second.refresh()
    second.eval()
    assert not scales.current(second).keep and looks == [2, 1]  # pyright: ignore


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


FACTOR_WRITES = {
    name: write
    for name, write in WRITES.items()
    if not name.startswith("base") and name not in ("replaced", "AdamW compiled")
}


@pytest.fixture
def casts(monkeypatch) -> list[int]:
    """One element for each time that A and B are cast to be kept."""
    made, original = [], kept.Scales.factors

    def watched(self, *args):
        before = self._factors
        found = original(self, *args)
        if self._factors is not before:
            made.append(1)
        return found

    monkeypatch.setattr(kept.Scales, "factors", watched)
    return made


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_tokens_in_eval_cast_the_factors_once(method, casts):
    _, layer = make("linear", method)
    shake(layer)
    layer.eval()
    x = inputs("linear").bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first = [layer(x) for _ in range(3)]
        learning = layer.train()(x)
    assert len(casts) == 1 and all(torch.equal(y, first[0]) for y in first)
    assert max_rel(first[0].float(), learning.float()) <= 2**-7


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("write", FACTOR_WRITES.values(), ids=FACTOR_WRITES)
def test_the_kept_factors_see_every_write(method, write):
    _, layer = make("linear", method)
    shake(layer)
    layer.eval()
    x = inputs("linear").bfloat16()
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            layer(x)
        write(layer)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            y = layer(x).float()
        assert max_rel(y, Dense(layer)(x.float())) <= 2**-6


@pytest.mark.parametrize(
    "write", [DATA_WRITES[name] for name in ("copy", "moving average", "own optimizer", "foreach")]
)
def test_the_kept_factors_see_a_write_through_data(write):
    _, layer = make("linear")
    shake(layer)
    layer.eval()
    x = inputs("linear").bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(x)
        write(layer)
        y = layer(x).float()
    assert max_rel(y, Dense(layer)(x.float())) <= 2**-6


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
