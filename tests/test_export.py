"""Exports are checked checkpoints: same logits, same files, or nothing at all."""

import dataclasses
import json
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import mmdora
import mmdora.export as room
from mmdora import merge_disk, parity
from mmdora.config import RunConfig, validate
from mmdora.errors import MmdoraError
from mmdora.export import Parity, TensorParity, export
from mmdora.injectors import adapted_modules, trainable_parameters
from mmdora.merge_disk import DiskMerge
from mmdora.shards import UnsureError

DORA = {
    "vision": {"method": "dora", "rank": 2},
    "projector": {"method": "full"},
    "language": {"method": "dora", "rank": 4, "targets": ["attention", "mlp"]},
}


@pytest.fixture(scope="module")
def make_adapter(tiny_llava, tmp_path_factory):
    """Adapters whose every parameter was moved, magnitudes by about a third."""

    def build(adapt):
        folder = tmp_path_factory.mktemp("adapter")
        model, _ = mmdora.load(tiny_llava)
        mmdora.inject(model, adapt)
        torch.manual_seed(1)
        with torch.no_grad():
            for _, parameter, _, kind in trainable_parameters(model):
                if kind == "magnitude":
                    parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
                else:
                    parameter.add_(0.1 * parameter.abs().mean().clamp_min(0.05) * torch.randn_like(parameter))
        mmdora.save_adapter(model, folder, base=str(tiny_llava))
        return folder

    return build


@pytest.fixture(scope="module")
def adapter(make_adapter):
    return make_adapter(DORA)


@pytest.fixture(scope="module")
def exported(adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "dora"
    return export(adapter, out, scores={"easy-VQA": 0.953, "rows": 9673}), out


@pytest.fixture
def few_rows(monkeypatch):
    """For tests that ask about files: comparing on two rows is enough."""
    monkeypatch.setattr(parity, "ROWS", 2)


def refuse_disk(monkeypatch):
    def refuse(*_):
        raise UnsureError("a test says so")

    monkeypatch.setattr(room, "DiskMerge", refuse)


@pytest.fixture(params=["disk", "memory"])
def route(request, monkeypatch):
    """Both ways to merge."""
    if request.param == "memory":
        refuse_disk(monkeypatch)
    return request.param


def same_files(a, b):
    """Names of the files of `a` that `b` has too, byte for byte."""
    theirs = {path.name: path.read_bytes() for path in b.iterdir() if path.is_file()}
    return {path.name for path in a.iterdir() if path.is_file() and theirs.get(path.name) == path.read_bytes()}


def test_the_files_give_the_logits_of_the_unmerged_model(adapter, exported, tiny_llava):
    found, out = exported
    assert found.max_rel <= 1e-5 and found.top1 == 1 and found.rows == 8 and found.same_text
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
    assert {path.name for path in out.iterdir()} - kept == {"config.json", "model.safetensors", "README.md"}


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
    assert 1e-5 < found.max_rel <= parity.MAX_REL[dtype] and found.top1 >= 0.97 and found.same_text is None
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


def test_a_merge_that_forgets_the_magnitudes_is_caught(adapter, tmp_path, monkeypatch, few_rows):
    def forgetful(model):
        with torch.no_grad():
            for module in adapted_modules(model).values():
                if module.magnitude is not None:
                    module.magnitude.copy_(module.row_norm())
                    module.refresh()
        return mmdora.merge(model)

    refuse_disk(monkeypatch)
    monkeypatch.setattr(room, "merge", forgetful)
    with pytest.raises(MmdoraError, match=r"not the trained one.*max-rel"):
        export(adapter, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["logits", "tensors"])
def test_a_merge_from_disk_that_forgets_the_magnitudes_is_caught(adapter, tmp_path, monkeypatch, few_rows, way):
    whole = merge_disk.merged_rows
    monkeypatch.setattr(merge_disk, "merged_rows", lambda w, a, b, m, s: whole(w, a, b, None, s))
    with pytest.raises(MmdoraError, match=r"not the trained ones?; nothing was exported.*max-rel"):
        export(adapter, tmp_path / "out", parity=way)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_lost_a_tensor_is_caught(adapter, tmp_path, monkeypatch, few_rows):
    whole = room.save_checkpoint

    def lossy(model, folder):
        del model.model.multi_modal_projector.linear_2.bias
        model.model.multi_modal_projector.linear_2.bias = None
        whole(model, folder)

    refuse_disk(monkeypatch)
    monkeypatch.setattr(room, "save_checkpoint", lossy)
    with pytest.raises(MmdoraError, match=r"does not load: missing keys .*linear_2\.bias"):
        export(adapter, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["logits", "tensors"])
def test_a_file_from_disk_that_lost_a_tensor_is_caught(adapter, tmp_path, monkeypatch, few_rows, way):
    whole = DiskMerge.write

    def lossy(self, folder):
        whole(self, folder)
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        del tensors["multi_modal_projector.linear_2.bias"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(DiskMerge, "write", lossy)
    with pytest.raises(MmdoraError, match=r"does not load: .*linear_2\.bias"):
        export(adapter, tmp_path / "out", parity=way)
    assert list(tmp_path.iterdir()) == []


def test_the_two_ways_give_the_same_files(adapter, exported, tmp_path, monkeypatch, few_rows, tiny_llava):
    _, disk = exported
    lines: list[str] = []
    refuse_disk(monkeypatch)
    export(adapter, tmp_path / "memory", say=lines.append)
    assert same_files(tmp_path / "memory", disk) == {path.name for path in disk.iterdir()} - {"README.md"}
    assert lines[0] == "merging in memory, not from disk: a test says so"


def test_what_cannot_be_merged_from_disk_is_merged_in_memory_and_said(adapter, exported, tmp_path, few_rows):
    """A base with a tensor that transformers does not know: the reason is in the lines, the result is the same."""
    base, run = shutil.copytree(mmdora.models.load.resolve("tiny-llava"), tmp_path / "base"), tmp_path / "run"
    tensors = load_file(base / "model.safetensors")
    save_file({**tensors, "stray": torch.ones(3)}, base / "model.safetensors", {"format": "pt"})
    shutil.copytree(adapter, run)
    ours = json.loads((run / "mmdora.json").read_text())
    (run / "mmdora.json").write_text(json.dumps({**ours, "base": str(base)}))
    lines: list[str] = []
    assert isinstance(export(run, tmp_path / "out", parity="tensors", say=lines.append), Parity)
    assert lines[0] == ("merging in memory, not from disk: LlavaForConditionalGeneration has no place for stray")
    assert "model.safetensors" in same_files(tmp_path / "out", exported[1])


def test_parity_is_of_logits_where_the_model_fits(adapter, tmp_path, monkeypatch, few_rows):
    need = 4 * sum(tensor.numel() for tensor in load_file(room.resolve("tiny-llava") + "/model.safetensors").values())
    lines: list[str] = []
    monkeypatch.setattr(room, "_free_memory", lambda: 8 * need)
    assert isinstance(export(adapter, tmp_path / "a", say=lines.append), Parity)
    assert lines[0].startswith("merging from disk: 1 file, 113 tensors: ")
    assert lines[1] == (
        f"comparing logits: the model in fp32 takes {need / 1e6:.1f} MB, "
        f"at most 1/8 of the {8 * need / 1e6:.1f} MB of memory available"
    )
    monkeypatch.setattr(room, "_free_memory", lambda: 8 * need - 1)
    monkeypatch.setattr(room, "load", None)  # no model is built
    lines.clear()
    found = export(adapter, tmp_path / "b", say=lines.append)
    assert isinstance(found, TensorParity) and found.beyond <= 1e-6
    assert lines[1].startswith("comparing tensors, not logits: the model in fp32 takes") and "more than 1/8" in lines[1]
    assert "equations in float64" in ModelCard.load(tmp_path / "b/README.md").text
    assert "stock transformers" not in ModelCard.load(tmp_path / "b/README.md").text


def test_rows_ask_for_logits(adapter, tmp_path, monkeypatch):
    rows = write_rows(tmp_path / "data")
    monkeypatch.setattr(room, "_free_memory", lambda: 0)
    found = export(adapter, tmp_path / "out", rows=rows[:2], images_root=tmp_path / "data", say=lambda line: None)
    assert isinstance(found, Parity) and found.rows == 2


@pytest.mark.parametrize(
    "change",
    [{"max_rel": 1.1e-5}, {"max_rel": float("nan")}, {"top1": 0.96}, {"same_text": False}],
    ids=lambda change: next(iter(change)),
)
def test_each_bound_can_fail(change):
    good = Parity(1e-6, 1.0, 8, "fp32", True)
    good.check()
    with pytest.raises(MmdoraError, match="nothing was exported"):
        dataclasses.replace(good, **change).check()


def test_top1_counts_every_position_that_is_no_tie_in_the_written_precision():
    want = torch.tensor([[4.0, 3.99, 0.0], [4.0, 3.0, 0.0], [0.0, 4.0, 3.0], [0.0, 1.0, 4.0]])
    got = want.clone()
    got[0, 1], got[1, 1] = 4.01, 4.5  # the best token changes in both
    ids = [torch.tensor([1])]

    def top1(dtype):
        return parity._compare(parity._Outputs([want], ids, None), parity._Outputs([got], ids, None), dtype, "").top1

    assert top1("fp32") == 2 / 4
    assert top1("bf16") == pytest.approx(2 / 3)  # 4.00 and 3.99 are one number in bf16


def test_other_token_ids_are_an_error():
    one, other = (parity._Outputs([torch.ones(1, 3)], [torch.tensor([i])], None) for i in (1, 2))
    with pytest.raises(MmdoraError, match="other token ids"):
        parity._compare(one, other, "fp32", "")


def test_a_source_that_is_nothing(tmp_path):
    with pytest.raises(MmdoraError, match=r"nowhere/nothing: no folder, no bundled model, and not to be had"):
        export("nowhere/nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MmdoraError, match=r"empty: no readable config\.json"):
        export(tmp_path / "empty", tmp_path / "out")


def test_refuses_a_folder_that_is_not_empty(tmp_path, adapter):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    with pytest.raises(MmdoraError, match="is not empty"):
        export(adapter, tmp_path / "out")
    assert (tmp_path / "out/mine.txt").read_text() == "keep"
    (tmp_path / "file").write_text("")
    with pytest.raises(MmdoraError, match="is not a folder"):
        export(adapter, tmp_path / "file")


def test_an_empty_folder_is_taken(tmp_path, tiny_llava, few_rows):
    (tmp_path / "out").mkdir()
    export(tiny_llava, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_others_may_read_the_files(exported):
    _, out = exported
    modes = {path.stat().st_mode & 0o777 for path in out.iterdir()}
    plain = out.parent / "plain"
    plain.touch()
    assert modes == {plain.stat().st_mode & 0o777}


def test_a_full_disk_leaves_nothing(tiny_llava, tmp_path, few_rows, route):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(MmdoraError, match=r"out: cannot write the checkpoint of [\d,]{9,} bytes: .*"):
            export(tiny_llava, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_before_writing(tiny_llava, tmp_path, monkeypatch, few_rows, route):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_234)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MmdoraError, match=r"out: the checkpoint needs [\d,]+ bytes, its disk has 1,234 left"):
        export(tiny_llava, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def run_folder(folder, adapter, tiny_llava, **data):
    shutil.copytree(adapter, folder / "adapter")
    tree = {"model": {"base": str(tiny_llava)}, "adapt": DORA, "data": data}
    validate(RunConfig, tree, where=str).save(folder / "config.yaml")
    return folder


def write_rows(folder):
    folder.mkdir()
    Image.new("RGB", (64, 64), "blue").save(folder / "a.png")
    rows = [
        {
            "id": str(i),
            "images": ["a.png"],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"How many boxes? {i}"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
            ],
        }
        for i in range(11)
    ]
    del rows[1]["messages"][0]["content"][0], rows[1]["images"][0]  # a row of text only
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_a_run_is_compared_on_its_own_data(adapter, tiny_llava, tmp_path, few_rows):
    rows = write_rows(tmp_path / "data")
    run = run_folder(tmp_path / "run", adapter, tiny_llava, train=tmp_path / "data/rows.jsonl")
    found: Any = export(run, tmp_path / "out")
    assert found.rows == 2 and found.source == f"of {tmp_path}/data/rows.jsonl"
    given: Any = export(run, tmp_path / "out2", rows=rows[:3], images_root=tmp_path / "data")
    assert given.rows == 3
    with pytest.raises(MmdoraError, match="no such file"):
        export(run, tmp_path / "out3", rows=rows[:1], images_root=tmp_path)


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


def test_a_base_from_the_hub_gives_its_cached_files(tiny_llava, tmp_path, monkeypatch, few_rows):
    cache = tmp_path / "hub/models--someone--tiny"
    snapshot = cache / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_llava, snapshot)
    (snapshot / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A base\n")
    (snapshot / "LICENSE").write_text("as you like")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    export("someone/tiny", tmp_path / "out")
    assert {"tokenizer.json", "chat_template.jinja", "LICENSE"} <= same_files(snapshot, tmp_path / "out")
    data = ModelCard.load(tmp_path / "out/README.md").data.to_dict()
    assert (data["base_model"], data["license"]) == ("someone/tiny", "apache-2.0")


def test_the_processor_is_stock(exported):
    _, out = exported
    assert type(AutoProcessor.from_pretrained(out)).__name__ == "LlavaProcessor"
