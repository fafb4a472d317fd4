"""An adapter alone: as trained, with a card; and a LoRA for vLLM, of one rank, that computes what was trained."""

import json
import re
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from exports import DORA, moved_adapter, run_folder
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
from mmdora.export.adapter_alone import export_adapter
from mmdora.export.snippet import QUESTION
from mmdora.export.vllm_lora import unserved
from mmdora.families import ask, family_of
from mmdora.files import with_checksum, write_json
from mmdora.models.load import load_processor
from mmdora.models.locate import resolve

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
        command = export_adapter(trained, tmp_path / "for", engine="vllm", say=lambda _: None)
    assert command is not None
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
    command = export_adapter(tmp_path / "adapter", tmp_path / "for", engine="vllm", say=lambda _: None)
    assert command is not None
    assert command.endswith(f"--chat-template {tmp_path / 'for' / 'chat_template.jinja'}")
    assert (tmp_path / "for" / "chat_template.jinja").read_text() == template
    assert mmdora.load(tmp_path / "for")[1].chat_template == template
    budget = ImageTokens(max=4)
    mmdora.save_adapter(model, tmp_path / "few", base=tiny_llava, image_tokens=budget)
    with pytest.raises(MmdoraError, match="was trained with another"):
        export_adapter(tmp_path / "few", tmp_path / "for few", engine="vllm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adapter", "--for", "llama.cpp"], "--for llama.cpp is for a merged checkpoint"),
        (["--adapter", "--parity", "tensors"], "--parity is for a merged checkpoint"),
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
        export_adapter(tmp_path / "adapter", tmp_path / "out", engine="vllm")


def test_an_adapter_as_trained_and_its_card(tmp_path, capsys, monkeypatch):
    """A DoRA of all parts: the files stay as they are; the card says base, plan, data and scores, and its code runs."""
    adapter = moved_adapter("tiny-llava", DORA, tmp_path / "adapter")
    run = run_folder(tmp_path / "run", adapter, "tiny-llava", train=str(tmp_path / "own/records.jsonl"))
    overall = {"score": 0.953, "n": 9673, "interval95": [0.95, 0.956]}
    result = tmp_path / "eval" / "metrics.json"
    result.parent.mkdir()
    write_json(result, with_checksum({"task": "easy-vqa", "metric": "accuracy", "overall": overall}))
    command = ["export", str(run), str(tmp_path / "out"), "--adapter", "--scores", str(result.parent)]
    assert main([*command, "--push-to-hub", "someone/dora", "--preview"]) == 0
    for name in ("adapter_model.safetensors", "adapter_config.json", "mmdora.json"):
        assert (tmp_path / "out" / name).read_bytes() == (adapter / name).read_bytes()
    text = (tmp_path / "out" / "README.md").read_text()
    shown = capsys.readouterr().out
    assert text in shown and "bytes  adapter_model.safetensors" in shown and str(tmp_path / "own") not in shown
    assert "An adapter (dora, full) of `tiny-llava`" in text and "merged" not in text and "library_name: peft" in text
    assert "| easy-vqa | accuracy 95.3% (95% interval 95.0% to 95.6%), 9,673 questions |" in text
    assert "own/records.jsonl" in text and "rank: 4" in text and "dropout_mode" not in text
    assert re.search(r"language +dora +\d+ +4 ", text)
    code = text.partition("```python\n")[2].partition("```")[0]
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    model, processor = mmdora.load(adapter)
    answer = mmdora.generate(model, processor, Image.open("photo.jpg"), QUESTION)
    assert capsys.readouterr().out.strip() == answer.strip()


def test_an_adapter_of_a_base_that_others_do_not_have_is_not_pushed(tiny_llava, tmp_path, capsys):
    shutil.copytree(resolve(tiny_llava), tmp_path / "base")
    adapter = moved_adapter(str(tmp_path / "base"), LANGUAGE, tmp_path / "adapter")
    assert main(["export", str(adapter), str(tmp_path / "out"), "--adapter", "--push-to-hub", "someone/lora"]) == 2
    assert "which others do not have; push the merged checkpoint" in capsys.readouterr().err
    assert main(["export", str(adapter), str(tmp_path / "out"), "--adapter"]) == 0
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


def test_the_card_of_a_lora_for_vllm_says_how_it_is_served(tiny_llava, tmp_path):
    adapter = moved_adapter(tiny_llava, LANGUAGE, tmp_path / "adapter")
    export_adapter(adapter, tmp_path / "mine", engine="vllm", say=lambda _: None)
    text = (tmp_path / "mine" / "README.md").read_text()
    assert "vllm serve tiny-llava --enable-lora --max-lora-rank 8 --lora-modules mine=mine\n" in text
    assert "An adapter (lora) of" in text and str(tmp_path) not in text
