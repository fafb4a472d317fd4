"""Adapters taken off and put on: the base bit for bit, named adapters, and their weighted sum in the merged weights."""

import pytest
import torch
from PIL import Image

import mmdora
from mmdora.adapt.inject import trainable_parameters
from mmdora.adapt.switch import adapters_of
from mmdora.errors import MmdoraError

PICTURE = Image.effect_noise((64, 64), 90).convert("RGB")
DORA = {
    "vision": {"method": "dora", "rank": 2, "bias": True},
    "projector": {"method": "full"},
    "language": {"method": "dora", "rank": 4, "norms": True, "dropout": 0.5, "targets": ["attention"]},
}
PLANS = {"lora": {"language": {"method": "lora", "rank": 4, "targets": ["attention"]}}, "dora": DORA}


def trained(plan, seed=0, **options):
    """The bundled base with an adapter whose every parameter was moved, and its processor."""
    torch.manual_seed(seed)
    model, processor = mmdora.load("tiny-llava")
    mmdora.inject(model, plan, **options)
    with torch.no_grad():
        for _, parameter, _, _ in trainable_parameters(model):
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, processor


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, plan) in enumerate(PLANS.items()):
        mmdora.save_adapter(trained(plan, seed)[0], folder / name)
    return folder


@pytest.fixture(scope="module")
def base():
    model, processor = mmdora.load("tiny-llava")
    inputs = processor(text="USER: <image> what is it? ASSISTANT:", images=PICTURE, return_tensors="pt")
    return model, inputs


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def same_weights(model, other):
    own, theirs = model.state_dict(), other.state_dict()
    return own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)


def test_disabled_it_is_the_base_bit_for_bit_and_then_itself_again(base):
    untouched, inputs = base
    model, _ = trained(DORA, keep_base=True)
    before = logits(model, inputs)
    assert not torch.allclose(before, logits(untouched, inputs), atol=1e-2)
    with mmdora.disable(model) as off:
        assert off is model and torch.equal(logits(model, inputs), logits(untouched, inputs))
        assert same_weights(model, untouched)
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(logits(model, inputs), before)
    mmdora.unload(model)
    assert same_weights(model, untouched) and torch.equal(logits(model, inputs), logits(untouched, inputs))


def test_it_goes_on_training_after_it_was_disabled(base):
    _, inputs = base
    results = []
    for switched in (True, False):
        model, _ = trained(DORA, keep_base=True)
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.1)
        for _ in range(2):
            if switched:
                with mmdora.disable(model):
                    logits(model, inputs)
            model(**inputs).logits.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(logits(model, inputs))
    assert torch.equal(*results)


def test_the_mode_that_is_set_while_disabled_stays(base):
    model, _ = trained(DORA, keep_base=True)
    with mmdora.disable(model):
        model.train()
    assert all(module.training for module in model.modules())


def test_an_error_inside_puts_the_adapter_on_again(base):
    model, _ = trained(PLANS["lora"])
    before = logits(model, base[1])
    with pytest.raises(ZeroDivisionError), mmdora.disable(model):
        raise ZeroDivisionError
    assert torch.equal(logits(model, base[1]), before)


def test_what_was_trained_in_full_in_the_bases_place_cannot_be_taken_off(base):
    model, _ = trained(DORA)
    before = logits(model, base[1])
    with pytest.raises(MmdoraError, match=r"trained in full.*keep_base"), mmdora.disable(model):
        pass
    assert torch.equal(logits(model, base[1]), before)
    with pytest.raises(MmdoraError, match="not adapted"), mmdora.disable(base[0]):
        pass


def test_the_reference_shares_the_weights_and_stays_the_base(base):
    untouched, inputs = base
    model, _ = trained(DORA, keep_base=True)
    twin = mmdora.reference(model)
    own = {p.data_ptr() for p in model.parameters()}
    kept = sum(p.nbytes for p in untouched.parameters() if p.shape) - sum(
        p.nbytes for p in twin.parameters() if p.data_ptr() in own
    )
    assert kept == sum(model.get_parameter(name).nbytes for name in model.mmdora_plan.full)
    with torch.no_grad():
        for _, parameter, _, _ in trainable_parameters(model):
            parameter.add_(1)
    assert torch.equal(logits(twin, inputs), logits(untouched, inputs)) and not twin.training
    assert mmdora.inject(mmdora.load("tiny-llava")[0], PLANS["lora"]) and not adapters_of(twin)


def test_named_adapters_are_what_each_is_alone(adapters, base):
    untouched, inputs = base
    expected: dict = {None: logits(untouched, inputs)}
    for name in PLANS:
        expected[name] = logits(mmdora.load(adapters / name)[0], inputs)
    model, _ = mmdora.load("tiny-llava")
    for name in PLANS:
        mmdora.load_adapter(model, adapters / name, name=name)
        assert torch.equal(logits(model, inputs), expected[name])
    for name in (None, "lora", "dora", "lora", None, "dora"):
        assert mmdora.use(model, name) is model
        assert torch.equal(logits(model, inputs), expected[name])
        with mmdora.disable(model):
            assert torch.equal(logits(model, inputs), expected[None])
        assert torch.equal(logits(model, inputs), expected[name])
    mmdora.save_adapter(model, adapters / "again")
    assert torch.equal(logits(mmdora.load(adapters / "again")[0], inputs), expected["dora"])
    mmdora.unload(model)
    assert same_weights(model, untouched) and torch.equal(logits(model, inputs), expected[None])


def test_merging_takes_the_one_in_use(adapters, base):
    model, _ = mmdora.load("tiny-llava")
    for name in PLANS:
        mmdora.load_adapter(model, adapters / name, name=name)
    mmdora.use(model, None)
    with pytest.raises(MmdoraError, match="none is in use"):
        mmdora.merge(model)
    mmdora.merge(mmdora.use(model, "lora"))
    assert same_weights(model, mmdora.merge(mmdora.load(adapters / "lora")[0])) and not adapters_of(model)


def test_names_are_checked_and_a_failure_changes_nothing(adapters, base):
    _, inputs = base
    model, _ = mmdora.load("tiny-llava")
    mmdora.load_adapter(model, adapters / "lora", name="lora")
    before = logits(model, inputs)
    for name, match in (("lora", "name of its own"), ("", "name of its own")):
        with pytest.raises(MmdoraError, match=match):
            mmdora.load_adapter(model, adapters / "dora", name=name)
    with pytest.raises(MmdoraError, match=r"no such|no adapter"):
        mmdora.load_adapter(model, adapters / "nowhere", name="other")
    with pytest.raises(MmdoraError, match="there is 'lora'"):
        mmdora.use(model, "loar")
    with pytest.raises(MmdoraError, match="already adapted"):
        mmdora.load_adapter(model, adapters / "dora")
    mmdora.use(model, None)
    with pytest.raises(MmdoraError, match="already adapted"):
        mmdora.inject(model, PLANS["lora"])
    mmdora.use(model, "lora")
    assert torch.equal(logits(model, inputs), before)
    alone, _ = trained(PLANS["lora"])
    with pytest.raises(MmdoraError, match="without a name"):
        mmdora.load_adapter(alone, adapters / "dora", name="dora")


def test_a_weighted_sum_is_made_in_the_merged_weights(adapters, base):
    untouched, _ = base
    weights = {"lora": 0.25, "dora": -0.5}
    model, _ = mmdora.load("tiny-llava")
    for name in PLANS:
        mmdora.load_adapter(model, adapters / name, name=name)
    with pytest.raises(MmdoraError, match="one adapter at a time"):
        mmdora.use(model, weights)  # pyright: ignore[reportArgumentType]
    with pytest.raises(MmdoraError, match="no adapter 'nora'"):
        mmdora.merge(model, weights={"nora": 1.0})
    mmdora.merge(model, weights=weights)
    expected = {name: tensor.double() for name, tensor in untouched.state_dict().items()}
    for name, factor in weights.items():
        alone, _ = mmdora.load(adapters / name)
        for path, module in alone.named_modules():
            if path in {entry.name for entry in alone.mmdora_plan.entries}:
                W0 = module.weight.double()
                direction = W0 + module.scaling * module.lora_B.double() @ module.lora_A.double()
                if module.magnitude is not None:
                    norm = torch.linalg.vector_norm(direction, dim=1)
                    direction = (module.magnitude.double() / norm)[:, None] * direction
                expected[f"{path}.weight"] += factor * (direction - W0)
        for path in alone.mmdora_plan.full:
            expected[path] += factor * (alone.get_parameter(path).double() - untouched.get_parameter(path).double())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
    mmdora.inject(model, PLANS["lora"])
