"""An adapter folder is checked as a whole: what changed after it was written is named, and nothing is loaded."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from shrunken import shrunken_llava

from mmdora.adapt.inject import inject, plan_of, trainable_parameters
from mmdora.adapter_files.adapters import load_adapter, restore_adapter, save_adapter
from mmdora.errors import MmdoraError
from mmdora.models.locate import locate

FILES = ("adapter_model.safetensors", "adapter_config.json", "mmdora.json")
ADAPT = {
    "vision": {"method": "dora", "rank": 4, "targets": ["q_proj"]},
    "projector": {"method": "magnitude"},
    "language": {"method": "lora", "rank": 8, "targets": ["q_proj", "v_proj"]},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    model, folder = shrunken_llava(), tmp_path_factory.mktemp("written")
    inject(model, ADAPT)
    torch.manual_seed(3)
    with torch.no_grad():
        for _, parameter, _, _ in trainable_parameters(model):
            parameter += 0.05 * torch.rand_like(parameter)
    save_adapter(model, folder, base="some/base")
    return folder


@pytest.fixture
def saved(written, tmp_path):
    return shutil.copytree(written, tmp_path / "adapter")


def refused(folder):
    model = shrunken_llava()
    with pytest.raises(MmdoraError) as error:
        load_adapter(model, folder)
    assert plan_of(model) is None and "\n" not in str(error.value)
    again = shrunken_llava()
    inject(again, ADAPT)
    with pytest.raises(MmdoraError):
        restore_adapter(again, folder)
    return str(error.value)


@pytest.mark.parametrize("part", range(12))
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_named(saved, name, part):
    content = bytearray((saved / name).read_bytes())
    place = len(content) * part // 12
    if name == "adapter_config.json" and content[place : place + 1] in b" \n":
        place = content.index(b"alpha")  # white space means nothing
    content[place] ^= 1
    (saved / name).write_bytes(content)
    assert name in refused(saved)


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(lora_alpha=3), r"scaling of \S+ \S+, and mmdora.json says 2"),
        (lambda c: c.update(use_rslora=True), "scaling of"),
        (lambda c: c.update(use_dora=False), "use_dora is False"),
        (lambda c: c.update(lora_dropout=0.5), "adapter_config.json changed after mmdora.json was written"),
        (lambda c: c.update(modules_to_save=["lm_head"]), "adapter_config.json changed after"),
        (lambda c: c.update(alpha_pattern={}), "scaling of"),
    ],
    ids=range(6),
)
def test_a_config_that_was_changed_is_seen(saved, change, said):
    edit(saved / "adapter_config.json", change)
    model = shrunken_llava()
    with pytest.raises(MmdoraError, match=said):
        load_adapter(model, saved)
    edit(saved / "mmdora.json", lambda ours: [ours.pop("files"), ours.pop("sha256")])  # as mmdora before 0.2 wrote it
    if "scaling" in said or "use_dora" in said:
        with pytest.raises(MmdoraError, match=said):
            load_adapter(model, saved)


def test_what_changes_nothing_is_no_change(saved):
    edit(saved / "adapter_config.json", lambda c: c.update(base_model_name_or_path="elsewhere"))  # the base was moved
    edit(saved / "mmdora.json", lambda ours: ours.update(base="elsewhere"))
    load_adapter(shrunken_llava(), saved)
    assert locate(saved).base == "elsewhere"


def test_a_config_that_is_gone_or_new_is_seen(saved, tmp_path):
    (saved / "adapter_config.json").unlink()
    with pytest.raises(MmdoraError, match=r"adapter_config\.json changed"):
        load_adapter(shrunken_llava(), saved)
    model = shrunken_llava()
    inject(model, {"projector": {"method": "full"}})
    save_adapter(model, tmp_path / "full")
    (tmp_path / "full" / "adapter_config.json").write_text("{}")
    with pytest.raises(MmdoraError, match=r"adapter_config\.json changed"):
        load_adapter(shrunken_llava(), tmp_path / "full")


def test_peft_that_saves_over_it_is_seen_and_can_be_meant(saved):
    theirs = PeftModel.from_pretrained(shrunken_llava(), saved, is_trainable=True)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.05
    theirs.save_pretrained(saved)
    with pytest.raises(MmdoraError, match=r"changed after mmdora\.json was written.*if PEFT saved it.*delete mmdora"):
        load_adapter(shrunken_llava(), saved)
    (saved / "mmdora.json").unlink()
    with pytest.warns(UserWarning, match="no fingerprint"):
        load_adapter(shrunken_llava(), saved)


@pytest.mark.parametrize(
    ("convert", "said"),
    [
        (lambda t: t.round().to(torch.int32), "is int32, not a float"),
        (lambda t: t.to(torch.complex64), "is complex64; an adapter's tensors are float32"),
        (lambda t: t.to(torch.float8_e4m3fn), "is float8_e4m3fn; an adapter's"),
        (lambda t: t.to(torch.bool), "is bool, not a float"),
        (lambda t: torch.full_like(t, torch.nan), "is not finite"),
        (lambda t: torch.full_like(t, torch.inf), "is not finite"),
        (lambda t: torch.full_like(t, 1e300, dtype=torch.float64), "is not finite in fp32"),
    ],
    ids=["int", "complex", "fp8", "bool", "nan", "inf", "too large for fp32"],
)
@pytest.mark.parametrize("ours", [True, False])
def test_tensors_that_are_no_weights_are_named(saved, tmp_path, convert, said, ours):
    if not ours:
        shutil.rmtree(saved)
        get_peft_model(shrunken_llava(), LoraConfig(target_modules=["q_proj"])).save_pretrained(saved)
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name: convert(tensors[name])}, path)
    model = shrunken_llava()
    with pytest.raises(MmdoraError, match=f"{name.removeprefix('base_model.model.')} {said}"):
        load_adapter(model, saved)
    assert plan_of(model) is None
