"""Gates in a run: the L1 term, resuming in the middle, and the ranks of the adapter that comes out."""

import json
import shutil
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from shrunken import llava_inputs, shrunken_llava
from tiny_run import config_of, same_run, silent, tree_for
from torch import nn

import mmdora
from mmdora.adapt.gates import closed, fold_gates
from mmdora.adapt.inject import adapted_modules, inject, trainable_parameters
from mmdora.adapter_files.files import own_plan
from mmdora.errors import MmdoraError
from mmdora.train import train
from mmdora.train.gates import GATES, restore, shrink

ADAPT: dict[str, Any] = {
    "vision": {"method": "dora", "rank": 2, "targets": ["attention"]},
    "projector": {"method": "full", "lr": 1e-4},
    "language": {"method": "lora", "rank": 4, "targets": ["attention"], "dropout": 0.1},
    "gates": {"l1": 0.9, "lr": 0.3},
}


def config(records, output, **changed: Any):
    schedule = {"steps": 4, "save_every": 2, "log_every": 2, "schedule": "constant", "warmup": 0}
    tree = tree_for(records, output, evaluates=False, **schedule)
    return config_of(tree | {"adapt": ADAPT | changed})


@pytest.fixture(scope="module")
def whole(ten_rows, tmp_path_factory):
    return train(config(ten_rows, tmp_path_factory.mktemp("gates") / "run"), say=silent)


def test_closed_gates_are_gone_from_the_adapter(whole):
    gates = {n: t for n, t in load_file(whole / "checkpoint-4" / GATES).items() if n.endswith(".gate")}
    plan, before = own_plan(whole / "adapter"), own_plan(whole / "checkpoint-4")
    left = {name.removesuffix(".gate"): int((gate != 0).sum()) for name, gate in gates.items()}
    shut = sum(gate.numel() for gate in gates.values()) - sum(left.values())
    assert 0 < shut < sum(gate.numel() for gate in gates.values())
    least = {entry.name: 1 if entry.method == "lora" else 0 for entry in before.entries}
    assert {entry.name: entry.rank for entry in plan.entries} == {n: max(r, least[n]) for n, r in left.items()}
    done = json.loads((whole / "complete.json").read_text())
    assert done["closed_gates"] == f"{shut} of {sum(gate.numel() for gate in gates.values())}"
    assert not (whole / "adapter" / GATES).exists()


def test_the_adapter_is_the_checkpoint_and_peft_loads_it(whole):
    """The result without its closed components, the checkpoint with zeros in their place, and PEFT answer alike."""
    model, processor = mmdora.load(str(whole / "adapter"))
    ids = processor.tokenizer("What color is the circle?", return_tensors="pt")
    others = [mmdora.load(str(whole / "checkpoint-4"))[0]]
    others.append(PeftModel.from_pretrained(mmdora.load("tiny-llava")[0], str(whole / "adapter")))
    with torch.no_grad():
        ours = model.eval()(**ids).logits
        assert not torch.allclose(ours, mmdora.load("tiny-llava")[0].eval()(**ids).logits, atol=1e-3)
        for other in others:
            assert torch.allclose(ours, other.eval()(**ids).logits, atol=2e-5)


def test_a_resume_in_the_middle_is_bit_equal(whole, ten_rows, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    for name in ("checkpoint-4", "adapter"):
        shutil.rmtree(run / name)
    (run / "complete.json").unlink()
    halfway = {n: t for n, t in load_file(run / "checkpoint-2" / GATES).items() if n.endswith(".gate")}
    assert any((gate != 1).all() for gate in halfway.values())
    resumed = train(config(ten_rows, run), resume=True, say=silent)
    assert same_run(resumed, whole)
    ours, theirs = (load_file(path / "checkpoint-4" / GATES) for path in (resumed, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_gates_of_other_ranks_are_refused(whole):
    model, _ = mmdora.load("tiny-llava")
    inject(model, ADAPT)
    restore(model, whole / "checkpoint-2")
    assert closed(model)[1] == sum(module.rank for module in adapted_modules(model).values())
    fresh, _ = mmdora.load("tiny-llava")
    inject(fresh, ADAPT | {"language": ADAPT["language"] | {"rank": 3}})
    with pytest.raises(MmdoraError, match="do not fit"):
        restore(fresh, whole / "checkpoint-2")


def test_shrinking_is_the_proximal_step_of_l1():
    gate, other = nn.Parameter(torch.tensor([1.0, 0.05, -0.05, -1.0, 0.0])), nn.Parameter(torch.ones(2))
    groups = [{"params": [gate], "lr": 0.2, "name": "language/gate"}, {"params": [other], "name": "language/low_rank"}]
    shrink(torch.optim.SGD(groups, lr=0.1), 0.5)
    assert torch.equal(gate, torch.tensor([0.9, 0.0, 0.0, -0.9, 0.0])) and other.tolist() == [1.0, 1.0]


def test_injected_gates_train_in_groups_of_their_own_and_fold_away():
    model = shrunken_llava()
    adapt = {"language": {"method": "dora", "rank": 3, "targets": ["attention"]}, "gates": {"l1": 0.1}}
    with torch.no_grad():
        base = model(**llava_inputs()).logits
    plan = inject(model, adapt)
    assert "gates: 24 more that train" in str(plan)
    kinds = [kind for _, _, _, kind in trainable_parameters(model)]
    assert kinds.count("gate") == 8 and kinds.count("magnitude") == 8
    with torch.no_grad():
        assert torch.allclose(model(**llava_inputs()).logits, base, atol=1e-5)
        for number, module in enumerate(adapted_modules(model).values()):
            assert module.gate is not None and module.lora_B is not None
            module.lora_B.normal_()
            module.gate[: number % 4] = 0
        gated = model(**llava_inputs()).logits
        folded = fold_gates(model)
        assert folded is not None and [entry.rank for entry in folded.entries] == [3, 2, 1, 0] * 2
        assert folded.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert torch.allclose(model(**llava_inputs()).logits, gated, atol=1e-5)


def test_gates_need_components():
    with pytest.raises(MmdoraError, match=r"adapt\.gates are on the components"):
        inject(shrunken_llava(), {"language": {"method": "magnitude"}, "gates": {"l1": 0.1}})
