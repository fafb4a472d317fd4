"""A LoRA for vLLM: one rank, one alpha and no patterns, and it computes what the trained adapter does."""

import json
import re
import warnings
from dataclasses import replace

import pytest
import torch
from exports import DORA, moved_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import mmdora
from mmdora.adapt.modality import ModelParts
from mmdora.adapt.plan import Entry, Plan
from mmdora.cli import main
from mmdora.config import ImageTokens
from mmdora.errors import MmdoraError
from mmdora.export.adapter_alone import export_adapter, unserved
from mmdora.families import ask, family_of
from mmdora.models.load import load_processor

LANGUAGE = {"language": {"method": "lora", "rank": 4, "alpha": 12}}


def base_of(folder):
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def logits(model, folder):
    inputs = family_of(load_processor(folder)).encode_prompts([ask("a circle?", Image.new("RGB", (64, 64), "red"))])
    with torch.inference_mode():
        return model(**inputs).logits


@pytest.fixture
def of_peft(tiny_llava, tmp_path):
    """An adapter of PEFT whose modules differ in rank and alpha, with rsLoRA."""
    config = LoraConfig(
        target_modules=r".*language_model.*\.(q_proj|v_proj|up_proj)",
        r=4,
        lora_alpha=6,
        use_rslora=True,
        rank_pattern={"q_proj": 2, "up_proj": 7},
        alpha_pattern={"up_proj": 3},
    )
    model = get_peft_model(base_of(tiny_llava), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "peft")
    file = tmp_path / "peft" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": tiny_llava}))
    return tmp_path / "peft", logits(model.eval(), tiny_llava)


def test_ranks_and_alphas_become_one(of_peft, tiny_llava, tmp_path):
    trained, want = of_peft
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT's files carry no fingerprint of their base.
        command = export_adapter(trained, tmp_path / "for", say=lambda _: None)
    assert command.split()[:5] == ["vllm", "serve", tiny_llava, "--enable-lora", "--max-lora-rank"]
    assert f"8 --lora-modules for={tmp_path / 'for'}" in command and "--chat-template" not in command
    config = json.loads((tmp_path / "for" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (7, 7, False)
    assert config["rank_pattern"] == config["alpha_pattern"] == {} and config["modules_to_save"] is None
    tensors = load_file(tmp_path / "for" / "adapter_model.safetensors")
    assert {tensor.shape["lora_B" in name] for name, tensor in tensors.items()} == {7}
    # The scaling that vLLM takes for all modules is alpha / r = 1: PEFT, without patterns, computes the same as before.
    peft = PeftModel.from_pretrained(base_of(tiny_llava), tmp_path / "for").eval()
    with pytest.warns(UserWarning, match="no fingerprint"):
        ours, _ = mmdora.load(tmp_path / "for")
    before = logits(base_of(tiny_llava), tiny_llava)
    assert (want - before).abs().max() > 0.1
    for model in (peft, ours):
        torch.testing.assert_close(logits(model, tiny_llava), want, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("adapt", "reason"),
    [
        (DORA, "it has no dora, only LoRA"),
        ({"language": {"method": "dora", "rank": 2}}, "it has no dora, only LoRA"),
        ({**LANGUAGE, "projector": {"method": "full"}}, "it reads no tensors that were trained in full"),
        (
            {**LANGUAGE, "vision": {"method": "lora", "rank": 2}},
            r"adapters outside .* \(\d+ modules of the v",
        ),
    ],
)
def test_what_vllm_would_not_serve_is_refused(adapt, reason, tiny_llava, tmp_path, capsys):
    adapter = moved_adapter(tiny_llava, adapt, tmp_path / "adapter")
    assert main(["export", str(adapter), str(tmp_path / "for"), "--adapter", "--for", "vllm"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(reason, line) and line.endswith(f"mmdora export {adapter} OUT")
    assert not (tmp_path / "for").exists()


def test_layers_and_ranks_that_vllm_does_not_know():
    known = Entry("model.language_model.layers.0.mlp.up_proj", "language", "lora", 8, 8.0, 1.0, 0.0, 96)
    plan = Plan(ModelParts((), (), ()), (known,), (), {}, {})
    assert unserved(plan) is None
    embedding = replace(plan, entries=(replace(known, kind="embedding"),))
    assert "is no linear but an adapted embedding" in str(unserved(embedding))
    assert "its largest rank is 512" in str(unserved(replace(plan, entries=(replace(known, rank=513),))))


def test_prompts_of_the_training(tiny_llava, tmp_path):
    """A template of the run's own goes with the adapter; another number of image tokens cannot."""
    model, processor = mmdora.load(tiny_llava)
    mmdora.inject(model, LANGUAGE)
    template = processor.chat_template.replace("{{ bos_token }}", "{{ bos_token }} ") + " "
    mmdora.save_adapter(model, tmp_path / "adapter", base=tiny_llava, template=template)
    command = export_adapter(tmp_path / "adapter", tmp_path / "for", say=lambda _: None)
    assert command.endswith(f"--chat-template {tmp_path / 'for' / 'chat_template.jinja'}")
    assert (tmp_path / "for" / "chat_template.jinja").read_text() == template
    assert mmdora.load(tmp_path / "for")[1].chat_template == template
    budget = ImageTokens(max=4)
    mmdora.save_adapter(model, tmp_path / "few", base=tiny_llava, image_tokens=budget)
    with pytest.raises(MmdoraError, match="was trained with another"):
        export_adapter(tmp_path / "few", tmp_path / "for few")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adapter"], "add --for vllm"),
        (["--adapter", "--for", "llama.cpp"], "add --for vllm"),
        (["--adapter", "--for", "vllm", "--dtype", "bf16"], "--dtype is for a merged checkpoint"),
        (["--adapter", "--for", "vllm"], "tiny-llava: is no adapter"),
    ],
)
def test_options_that_do_not_go_together(options, message, tmp_path, capsys):
    assert main(["export", "tiny-llava", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


def test_an_adapter_of_quantised_weights_is_refused(tiny_llava, tmp_path):
    model, _ = mmdora.load(tiny_llava, quantize="nf4")
    mmdora.inject(model, LANGUAGE)
    mmdora.save_adapter(model, tmp_path / "adapter", base=tiny_llava)
    with pytest.raises(MmdoraError, match="was trained on nf4 weights"):
        export_adapter(tmp_path / "adapter", tmp_path / "out")
