"""In compiled graphs the scale is the eager one: no break, no recompilation, no trace of another call's parameters."""

import copy

import pytest
import torch
from layer_cases import inputs, make, max_rel, shake
from scale_cases import Tower, batch, losses

pytestmark = pytest.mark.usefixtures("fresh_compiler")


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
