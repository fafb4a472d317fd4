"""What an export writes: the trained model's logits, the base's files, a card; both ways to merge write the same."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import DORA, moved_adapter, refuse_disk, run_folder, same_files
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import mmdora
from mmdora.export import parity
from mmdora.export.run import Parity, export
from mmdora.models.locate import resolve


@pytest.fixture(scope="module")
def make_adapter(tiny_llava, tmp_path_factory):
    """Adapters of any methods."""
    return lambda adapt: moved_adapter(tiny_llava, adapt, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def adapter(make_adapter):
    return make_adapter(DORA)


@pytest.fixture(scope="module")
def exported(adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "dora"
    return export(adapter, out, scores={"easy-VQA": 0.953, "rows": 9673}), out


def test_the_files_give_the_logits_of_the_unmerged_model(adapter, exported, tiny_llava):
    found, out = exported
    assert found.max_rel <= 1e-5 and found.top1 == 1 and found.rows == 8 and found.same_text == 1
    adapted, processor = mmdora.load(adapter)
    base, _ = mmdora.load(tiny_llava)
    merged = AutoModelForImageTextToText.from_pretrained(out).eval()
    assert merged.dtype == torch.float32 and type(merged) is type(base)
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a circle?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(text=prompt, images=Image.new("RGB", (64, 64), "red"), return_tensors="pt")
    with torch.inference_mode():
        got, want, before = (model(**inputs).logits for model in (merged, adapted, base))
    assert (got - want).abs().max() / want.abs().max() <= 1e-5
    assert (got - before).abs().max() / before.abs().max() > 1e-2


def test_files_the_run_did_not_change_are_copied_byte_for_byte(exported, tiny_llava):
    _, out = exported
    base = Path(tiny_llava)
    kept = {path.name for path in base.iterdir()} - {"config.json", "model.safetensors", "README.md"}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"} <= kept
    assert kept <= same_files(base, out)
    made = {"config.json", "model.safetensors", "README.md", "mmdora.json"}
    assert {path.name for path in out.iterdir()} - kept == made


def test_embeddings_stay_tied_and_are_written_once(exported):
    _, out = exported
    names = load_file(out / "model.safetensors").keys()
    assert "language_model.model.embed_tokens.weight" in names and "language_model.lm_head.weight" not in names
    assert "vision_tower.vision_model.pre_layrnorm.weight" in names
    opened: Any = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    model, info = opened
    assert not (info["missing_keys"] or info["unexpected_keys"])
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_rounds_the_merged_weights_once(adapter, exported, tmp_path, dtype, kind, route):
    found: Any = export(adapter, tmp_path / "half", dtype=dtype)
    assert 1e-5 < found.max_rel <= parity.WITHIN * found.own and found.top1 >= 0.97 and found.same_text is None
    exact, half = (load_file(folder / "model.safetensors") for folder in (exported[1], tmp_path / "half"))
    assert exact.keys() == half.keys()
    assert all(torch.equal(half[name], exact[name].to(kind)) for name in exact)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "half").dtype == kind
    config = json.loads((tmp_path / "half/config.json").read_text())
    parts = (config, config["text_config"], config["vision_config"])
    assert {part["dtype"] for part in parts} == {str(kind).removeprefix("torch.")}
    again = export(tmp_path / "half", tmp_path / "plain")  # a plain checkpoint keeps its own dtype
    assert again.dtype == dtype and again.max_rel == 0
    assert (tmp_path / "plain/model.safetensors").read_bytes() == (tmp_path / "half/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "adapt",
    [
        {"language": {"method": "lora", "rank": 2}},
        {"language": {"method": "magnitude"}},
        {"vision": {"method": "full"}, "projector": {"method": "full"}, "language": {"method": "full"}},
    ],
    ids=["lora", "magnitude", "full"],
)
def test_other_methods(make_adapter, tmp_path, adapt, few_rows, route):
    assert export(make_adapter(adapt), tmp_path / "out").max_rel <= 1e-5
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == model.config.tie_word_embeddings


def test_the_two_ways_give_the_same_files(adapter, exported, tmp_path, monkeypatch, few_rows, tiny_llava):
    _, disk = exported
    lines: list[str] = []
    refuse_disk(monkeypatch)
    export(adapter, tmp_path / "memory", say=lines.append)
    both = same_files(tmp_path / "memory", disk)
    assert both == {path.name for path in disk.iterdir()} - {"README.md", "mmdora.json"}  # These hold the name.
    assert lines[0] == "merging in memory, not from disk: a test says so"


def test_what_cannot_be_merged_from_disk_is_merged_in_memory_and_said(adapter, exported, tmp_path, few_rows):
    """A base with a tensor that transformers does not know: the reason is in the lines, the result is the same."""
    base, run = shutil.copytree(resolve("tiny-llava"), tmp_path / "base"), tmp_path / "run"
    tensors = load_file(base / "model.safetensors")
    save_file({**tensors, "stray": torch.ones(3)}, base / "model.safetensors", {"format": "pt"})
    shutil.copytree(adapter, run)
    ours = json.loads((run / "mmdora.json").read_text())
    (run / "mmdora.json").write_text(json.dumps({**ours, "base": str(base)}))
    lines: list[str] = []
    assert isinstance(export(run, tmp_path / "out", parity="tensors", say=lines.append), Parity)
    assert lines[0] == ("merging in memory, not from disk: LlavaForConditionalGeneration has no place for stray")
    assert "model.safetensors" in same_files(tmp_path / "out", exported[1])


def test_others_may_read_the_files(exported):
    _, out = exported
    modes = {path.stat().st_mode & 0o777 for path in out.iterdir()}
    plain = out.parent / "plain"
    plain.touch()
    assert modes == {plain.stat().st_mode & 0o777}


def test_the_card(adapter, exported, tiny_llava, tmp_path, few_rows):
    found, out = exported
    card = ModelCard.load(out / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "image-text-to-text")
    assert data["tags"] == ["mmdora", "dora", "full"]
    for text in (mmdora.__version__, str(found), "| easy-VQA | 95.3% |", "| rows | 9673 |", "language   dora"):
        assert text in card.text
    assert str(Path(tiny_llava).parent) not in card.text
    run = run_folder(tmp_path / "run", adapter, tiny_llava)
    export(run, tmp_path / "out")
    assert "rank: 4" in ModelCard.load(tmp_path / "out/README.md").text


def test_the_cards_example_runs(exported, tmp_path, monkeypatch, capsys):
    _, out = exported
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    Image.new("RGB", (64, 64), "green").save(tmp_path / "photo.jpg")
    (tmp_path / out.name).symlink_to(out)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "What is in the picture?" in capsys.readouterr().out


def test_the_processor_is_stock(exported):
    _, out = exported
    assert type(AutoProcessor.from_pretrained(out)).__name__ == "LlavaProcessor"
