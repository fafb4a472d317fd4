"""The chunked loss against plain cross-entropy: value and every gradient, and models that it does not fit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from shrunken import llava_inputs, shrunken_llava

from mmdora.adapt.inject import inject, trainable_parameters
from mmdora.train import loss as room
from mmdora.train.loss import ChunkedLoss, chunked_cross_entropy


def max_rel(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def labelled(rows=3):
    batch = llava_inputs(rows)
    labels = batch["input_ids"].clone()
    labels[:, :7] = -100
    labels[0, 8] = -100
    return {**batch, "labels": labels}


@pytest.mark.parametrize("logits", [10**9, 40 * 3, 1])
@pytest.mark.parametrize("items", [None, 11])
def test_value_and_gradients(logits, items):
    torch.manual_seed(0)
    states, head = torch.randn(2, 9, 16, requires_grad=True), torch.randn(40, 16, requires_grad=True)
    targets = torch.randint(0, 40, (2, 9)).masked_fill(torch.rand(2, 9) < 0.4, -100)
    ours = chunked_cross_entropy(lambda s: s @ head.T, [head], states, targets, 40, items, logits=logits)
    grads = torch.autograd.grad(ours, (states, head))
    kind = "mean" if items is None else "sum"
    plain = F.cross_entropy((states @ head.T).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction=kind)
    plain = plain / (items or 1)
    assert max_rel(ours, plain) < 1e-6
    for a, b in zip(grads, torch.autograd.grad(plain, (states, head)), strict=True):
        assert max_rel(a, b) < 1e-6


def test_no_more_logits_at_a_time_than_allowed():
    seen = []
    states = torch.randn(50, 8, requires_grad=True)

    def head(chunk):
        seen.append(len(chunk))
        return chunk @ torch.ones(8, 20)

    chunked_cross_entropy(head, [], states, torch.zeros(50, dtype=torch.long), 20, logits=20 * 7).backward()
    assert max(seen) == 7 and sum(seen) == 50  # and never twice


def adapted(**adapt):
    model = shrunken_llava(tie_word_embeddings=adapt.pop("tied", False))
    inject(model, adapt)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter, _, _ in trainable_parameters(model):
            if name.endswith("lora_B"):
                parameter.normal_(std=0.05)
    return model


@pytest.mark.parametrize(
    "adapt",
    [
        {"language": {"method": "dora", "rank": 4}},
        {"language": {"method": "dora", "rank": 4, "targets": ["q_proj", "lm_head"]}},
        {"language": {"method": "full"}, "vision": {"method": "lora", "rank": 2}},
        {"language": {"method": "full"}, "tied": True},
    ],
    ids=["adapters", "adapted head", "full", "tied"],
)
def test_models(adapt, monkeypatch):
    monkeypatch.setattr(room, "LOGITS", 64 * 2)
    monkeypatch.setattr(chunked_cross_entropy, "__kwdefaults__", {"logits": 64 * 2})
    model = adapted(**adapt)
    twin, batch = copy.deepcopy(model), labelled()
    chunks = ChunkedLoss(model)
    assert chunks.problem(batch) is None
    for _ in range(2):  # accumulated
        with chunks.applied():
            ours = model(**batch, num_items_in_batch=torch.tensor(9)).loss
        ours.backward()
        plain = twin(**batch, num_items_in_batch=torch.tensor(9)).loss
        plain.backward()
        assert max_rel(ours, plain) < 1e-6
    theirs = dict(twin.named_parameters())
    for name, parameter, _, _ in trainable_parameters(model):
        if theirs[name].grad is not None and bool(theirs[name].grad.any()):
            assert max_rel(parameter.grad, theirs[name].grad) < 2e-6, name
    assert model(**batch).logits.shape[-1] == 64  # as it was


def test_a_model_that_changes_its_logits_is_found_out():
    model = shrunken_llava()
    model.lm_head.register_forward_hook(lambda module, given, logits: torch.tanh(3 * logits))  # as soft caps do
    problem = ChunkedLoss(model).problem(labelled())
    assert problem is not None and "changes its logits" in problem


def test_a_model_without_the_common_loss_function_is_found_out():
    model = shrunken_llava()
    plain = type(model).forward

    def forward(*, labels, **inputs):
        logits = plain(model, **inputs).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return type("Output", (), {"loss": loss})

    model.forward = forward
    problem = ChunkedLoss(model).problem({**labelled(), "labels": torch.zeros(3, 10, dtype=torch.long)})
    assert problem is not None
