"""A LLaVA of an open_clip tower and a language model: its numbers, its prompts, both stages, what is refused."""

import json
from typing import Any

import open_clip
import pytest
import torch
import yaml
from asked_prompts import encode_prompts
from safetensors.torch import save_file
from tiny_run import config_of, curve, silent
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import mmdora
from mmdora.cli import main
from mmdora.config import Compose
from mmdora.errors import MmdoraError
from mmdora.export.run import export
from mmdora.families import family_of
from mmdora.models.llava.compose import compose, compose_into
from mmdora.models.llava.templates import SYSTEM
from mmdora.records.images import FileRef, open_image
from mmdora.records.reader import read_records, write_records
from mmdora.records.turns import split_turns
from mmdora.train.run import train

VIT: dict[str, Any] = {"embed_dim": 12, "quick_gelu": True}
VIT |= {"text_cfg": {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}}
VIT |= {"vision_cfg": {"image_size": 32, "layers": 3, "width": 16, "head_width": 8, "patch_size": 8}}
RESNET = VIT | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 4, "head_width": 16}}
SIZES: dict[str, Any] = {"vocab_size": 2048, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES |= {"initializer_range": 0.2}  # loud enough to learn something in a few steps
CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
THINKING = CHATML.replace("message['content'] +", "('' if loop.last else '(thought) ') + message['content'] +")


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tiny_llava):
    """A folder with open_clip towers and language models, and the towers as open_clip has them."""
    folder = tmp_path_factory.mktemp("parts")
    towers = {}
    for name, settings in (("tiny-compose-vit", VIT), ("tiny-compose-resnet", RESNET)):
        (folder / "configs").mkdir(exist_ok=True)
        (folder / "configs" / f"{name}.json").write_text(json.dumps(settings))
        open_clip.add_model_config(folder / "configs" / f"{name}.json")
        torch.manual_seed(7)
        model: Any = open_clip.create_model(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        torch.save(model.state_dict(), folder / f"{name}.pt")
        save_file(model.state_dict(), folder / f"{name}.safetensors")
        towers[name] = model.visual.eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llava)
    torch.manual_seed(3)
    for name, language, template in (
        ("llama", LlamaForCausalLM(LlamaConfig(**SIZES)), None),
        ("qwen", Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)), CHATML),
        ("thinking", LlamaForCausalLM(LlamaConfig(**SIZES)), THINKING),
        ("gemma2", Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=12, final_logit_softcapping=0.01)), None),
        ("opt", OPTForCausalLM(OPTConfig(vocab_size=2048, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
                                         ffn_dim=40, word_embed_proj_dim=24)), None),
    ):  # fmt: skip
        language.save_pretrained(folder / name)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder / name)
    return folder, towers


def vit(folder, suffix="pt"):
    return f"open_clip:tiny-compose-vit/{folder}/tiny-compose-vit.{suffix}"


def text(words):
    return {"type": "text", "text": words}


MESSAGES = [{"role": "user", "content": [text("what?"), {"type": "image"}]}]


@torch.no_grad()
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("language", ["llama", "qwen"])
def test_it_sees_what_open_clip_sees_and_says_what_its_language_model_says(
    parts, scene_records, tmp_path, suffix, language
):
    folder, towers = parts
    model, processor = mmdora.load({"vision": vit(folder, suffix), "language": str(folder / language)})
    inputs = encode_prompts(processor, [MESSAGES], [[open_image(FileRef("0.png", scene_records.parent))]])
    states = []
    tower = towers["tiny-compose-vit"]
    handle = tower.transformer.resblocks[-2].register_forward_hook(lambda module, args, output: states.append(output))
    tower.forward_intermediates(inputs["pixel_values"])
    handle.remove()
    projector: Any = model.model.multi_modal_projector
    visual = projector.linear_2(torch.nn.functional.gelu(projector.linear_1(states[0][:, 1:])))
    kind: Any = LlamaForCausalLM if language == "llama" else Qwen2ForCausalLM
    alone = kind.from_pretrained(folder / language).eval()
    image = processor.image_token_id
    assert int((inputs["input_ids"] == image).sum()) == 16
    embedded = alone.get_input_embeddings()(inputs["input_ids"])
    embedded[inputs["input_ids"] == image] = visual.flatten(0, 1)
    expected = alone(inputs_embeds=embedded).logits
    torch.testing.assert_close(model(**inputs).logits[..., :2048], expected, rtol=1e-4, atol=1e-5)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "out")
    stock: Any = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(stock(**inputs).logits[..., :2048], expected, rtol=1e-4, atol=1e-5)
    assert stock.config.vision_config.model_type == "clip_vision_model"
    assert stock.config.text_config.model_type == {"llama": "llama", "qwen": "qwen2"}[language]
    assert (stock.lm_head.weight is stock.get_input_embeddings().weight) is (language == "qwen")


@torch.no_grad()
def test_a_tower_that_clip_is_not_stays_open_clips(parts, scene_records, tmp_path):
    folder, towers = parts
    model, processor = mmdora.load(
        {"vision": f"open_clip:tiny-compose-resnet/{folder}/tiny-compose-resnet.pt", "language": str(folder / "qwen")}
    )
    inputs = encode_prompts(processor, [MESSAGES], [[open_image(FileRef("0.png", scene_records.parent))]])
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 4
    seen = []
    handle = towers["tiny-compose-resnet"].layer4.register_forward_hook(
        lambda module, args, output: seen.append(output)
    )
    towers["tiny-compose-resnet"](inputs["pixel_values"])
    handle.remove()
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    expected = model.model.multi_modal_projector(seen[0].flatten(2).transpose(1, 2))[0]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "out")
    again, _ = mmdora.load(tmp_path / "out")
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    with torch.enable_grad():
        plan = mmdora.inject(again, {"projector": {"method": "full"}})
        again(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert plan.trainable and again.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_towers_of_transformers(parts, scene_records, tmp_path, kind):
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    tower: Any = (
        CLIPVisionModel(CLIPVisionConfig(**sizes)) if kind == "clip" else SiglipVisionModel(SiglipVisionConfig(**sizes))
    )
    tower.eval().save_pretrained(tmp_path / "tower")
    SiglipImageProcessor(image_mean=[0.5, 0.4, 0.3]).save_pretrained(tmp_path / "tower")
    model, processor = mmdora.load({"vision": str(tmp_path / "tower"), "language": str(parts[0] / "llama")})
    inputs = encode_prompts(processor, [MESSAGES], [[open_image(FileRef("0.png", scene_records.parent))]])
    states = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
    expected = model.model.multi_modal_projector(states[:, 1:] if kind == "clip" else states)[0]
    found = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    torch.testing.assert_close(found, expected)
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 16 == len(found)
    assert processor.image_processor.image_mean == (0.5, 0.4, 0.3)
    assert model(**inputs).logits.isfinite().all()


def test_prompts_are_the_language_models_own_or_llavas(parts):
    folder, _ = parts
    _, processor = compose(Compose(vision=vit(folder), language=str(folder / "qwen")))
    turns = [{"role": "system", "content": [text("Be brief.")]}, *MESSAGES]
    end = processor.tokenizer.eos_token
    assert family_of(processor).render(turns, generation_prompt=True) == (
        f"<|system|>Be brief.{end}<|user|><image>\nwhat?{end}<|assistant|>"
    )
    _, processor = compose(Compose(vision=vit(folder), language=str(folder / "qwen"), template="llava_v1"))
    assert family_of(processor).render(MESSAGES, generation_prompt=True) == f"{SYSTEM} USER: <image> \nwhat? ASSISTANT:"
    _, processor = compose(Compose(vision=vit(folder), language=str(folder / "llama")))
    assert family_of(processor).render(MESSAGES, generation_prompt=True) == f"{SYSTEM} USER: <image> \nwhat? ASSISTANT:"


@pytest.mark.parametrize(
    ("language", "options", "says"),
    [
        ("gemma2", {}, "Gemma2ForCausalLM gives other logits inside of LLaVA"),
        ("thinking", {}, r"rewrites earlier turns.*set model\.compose\.template: llava_v1"),
        ("llama", {"template": "own"}, "has no chat template of its own"),
        ("nowhere", {}, "nowhere.*cannot be loaded"),
    ],
)
def test_what_llava_cannot_be_made_of_is_one_line(parts, language, options, says):
    with pytest.raises(MmdoraError, match=says) as raised:
        compose(Compose(vision=vit(parts[0]), language=str(parts[0] / language), **options))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("vision", "says"),
    [
        ("open_clip:tiny-compose-vit", "name its weights too"),
        ("open_clip:no-such-vit/openai", "open_clip has no model 'no-such-vit'"),
        ("open_clip:tiny-compose-vit/no-such-tag", "'no-such-tag': cannot be loaded"),
        ("open_clip:tiny-compose-resnet/{folder}/tiny-compose-vit.pt", "do not fit the tower"),
        ("{folder}/llama", "a llama; use a CLIP, a SigLIP, or a tower of open_clip"),
    ],
)
def test_a_tower_that_is_none_is_one_line(parts, vision, says):
    with pytest.raises(MmdoraError, match=says) as raised:
        compose(Compose(vision=vision.format(folder=parts[0]), language=str(parts[0] / "llama")))
    assert "\n" not in str(raised.value)


@torch.no_grad()
def test_a_language_model_with_its_table_elsewhere_is_untied(parts, tmp_path):
    model, processor = compose(Compose(vision=vit(parts[0]), language=str(parts[0] / "opt")))
    ids = torch.tensor([[5, 6, 7]])
    expected = OPTForCausalLM.from_pretrained(parts[0] / "opt").eval()(ids).logits
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    again, _ = mmdora.load(tmp_path)
    torch.testing.assert_close(again(input_ids=ids).logits[..., :2048], expected)


def test_the_seed_decides_the_projector_and_a_base_is_made_once(parts, tmp_path):
    recipe = Compose(vision=vit(parts[0]), language=str(parts[0] / "llama"))
    state = torch.get_rng_state()
    one, two, three = (compose(recipe, seed=seed)[0].model.multi_modal_projector.linear_1 for seed in (0, 0, 1))
    torch.set_rng_state(state)
    assert torch.equal(one.weight, two.weight) and not torch.equal(one.weight, three.weight)
    assert 0.15 < float(one.weight.detach().std()) < 0.25 and not one.bias.any()  # the language model's range
    said = []
    compose_into(tmp_path / "base", recipe, 0, said.append)
    stamp = (tmp_path / "base/model.safetensors").stat().st_mtime_ns
    compose_into(tmp_path / "base", recipe, 0, said.append)
    assert len(said) == 1 and (tmp_path / "base/model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(MmdoraError, match="was composed of other parts or with another seed"):
        compose_into(tmp_path / "base", recipe, 1, said.append)


@pytest.mark.filterwarnings("ignore")
def test_both_stages_and_the_export_between(parts, scene_records, tmp_path):
    folder, _ = parts
    whole = [record for record in map(json.loads, scene_records.read_text().splitlines()) if record["images"]]
    write_records(scene_records.parent / "pictured.jsonl", (turn for row in whole for turn in split_turns(row, 1)))
    data = {"train": str(scene_records.parent / "pictured.jsonl")}
    training = {"steps": 12, "batch_size": 4, "lr": 1e-2, "log_every": 1, "schedule": "constant", "warmup": 0}
    recipe = {"vision": vit(folder), "language": str(folder / "qwen")}
    one = config_of({
        "model": {"compose": recipe}, "adapt": {"projector": {"method": "full"}}, "data": data,
        "training": training | {"output": str(tmp_path / "one")},
    })  # fmt: skip
    train(one, say=silent)
    assert (tmp_path / "one/base/config.json").is_file() and "compose" in (tmp_path / "one/config.yaml").read_text()
    export(tmp_path / "one", tmp_path / "merged")
    two = config_of({
        "model": {"base": str(tmp_path / "merged")},
        "adapt": {"projector": {"method": "full"}, "language": {"method": "dora", "rank": 4}},
        "data": data, "training": training | {"output": str(tmp_path / "two")},
    })  # fmt: skip
    train(two, say=silent)
    export(tmp_path / "two", tmp_path / "final")
    first, second = ([e["loss"] for e in curve(tmp_path / run) if "loss" in e] for run in ("one", "two"))
    for losses in (first, second):
        assert sum(losses[-3:]) < sum(losses[:3]) - 0.3
    adapted, processor = mmdora.load(tmp_path / "two")
    stock: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "final").eval()
    kinds = [type(stock), type(stock.model.vision_tower)]
    assert kinds == [LlavaForConditionalGeneration, CLIPVisionModel]
    records = read_records(scene_records)
    rows = [records[i] for i in range(2)]
    images = [[open_image(image) for image in row["images"]] for row in rows]
    inputs = encode_prompts(processor, [row["messages"][:1] for row in rows], images)
    theirs = encode_prompts(
        AutoProcessor.from_pretrained(tmp_path / "final"), [r["messages"][:1] for r in rows], images
    )
    assert all(torch.equal(inputs[key], theirs[key]) for key in inputs)
    ids = adapted.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(stock.generate(**theirs, max_new_tokens=6, do_sample=False), ids)
    assert ids.shape[1] > inputs["input_ids"].shape[1]


def test_the_command_line_composes_and_shows_a_batch(parts, scene_records, tmp_path, capsys):
    command = ["train", str(tmp_path / "config.yaml"), "--dry-run", "--training.output", str(tmp_path / "run")]
    recipe = {"vision": vit(parts[0]), "language": str(parts[0] / "qwen")}
    tree = {
        "model": {"compose": recipe},
        "adapt": {"projector": {"method": "full"}},
        "data": {"train": str(scene_records)},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "composing" in shown and "LlavaForConditionalGeneration" not in shown and "nothing was trained" in shown
    assert (tmp_path / "run/base/model.safetensors").is_file() and not (tmp_path / "run/config.yaml").exists()
