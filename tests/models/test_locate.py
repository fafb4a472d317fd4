"""What a name stands for is found once."""

import json
import shutil
from pathlib import Path

import pytest

import mmdora
from mmdora.config import ImageTokens, RunConfig, load_config, validate
from mmdora.config.model import Model
from mmdora.errors import MmdoraError
from mmdora.files import with_checksum
from mmdora.models.locate import Location, bundled, lasting_name, locate, resolve, with_lasting_paths


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder, as far as its adapter and its config go."""
    folder = tmp_path_factory.mktemp("runs") / "dora"
    model, _ = mmdora.load("tiny-llava")
    mmdora.inject(model, {"projector": {"method": "lora", "rank": 2}})
    mmdora.save_adapter(model, folder / "adapter", base="tiny-llava")
    shutil.copytree(folder / "adapter", folder / "checkpoint-3")
    (folder / "config.yaml").write_text("")
    return folder


def test_bases(tmp_path):
    for name in ("tiny-llava", "someone/some-model", str(tmp_path), "x" * 5000, "\0"):
        assert locate(name) == Location(name, name, None, None, ImageTokens())
    assert locate("tiny-llava").source == resolve("tiny-llava") and Path(resolve("tiny-llava")).is_dir()
    assert "tiny-llava" in bundled() and locate("someone/some-model").source == "someone/some-model"


@pytest.mark.parametrize("inner", ["", "adapter", "checkpoint-3"])
def test_a_run_its_adapter_and_its_checkpoints(run, inner):
    name = run / inner
    assert locate(name) == Location(str(name), "tiny-llava", run / (inner or "adapter"), run, ImageTokens())


def test_an_adapter_that_lies_alone(run, tmp_path):
    shutil.copytree(run / "adapter", tmp_path / "mine")
    ours = json.loads((tmp_path / "mine" / "mmdora.json").read_text()) | {"image_tokens": {"max": 40}}
    (tmp_path / "mine" / "mmdora.json").write_text(json.dumps(with_checksum(ours, ("base",))))
    found = locate(tmp_path / "mine")
    assert found.run is None and found.adapter == tmp_path / "mine" and found.image_tokens == ImageTokens(max=40)


def test_adapters_that_cannot_be_opened(run, tmp_path):
    shutil.copytree(run / "adapter", tmp_path / "mine")
    for name in ("mmdora.json", "adapter_config.json"):
        (tmp_path / "mine" / name).unlink()
    with pytest.raises(MmdoraError, match=r"neither mmdora\.json nor adapter_config\.json names the base model"):
        locate(tmp_path / "mine")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(MmdoraError, match="is a pickle"):
        locate(tmp_path / "pickled")


def test_the_path_of_a_base_means_the_same_from_any_folder(tiny_llava, tmp_path, monkeypatch):
    """Named by a relative path while loaded and saved, found from elsewhere; by PEFT too, which has its own file."""
    for name in ("a", "m", "elsewhere"):
        (tmp_path / name).mkdir()
    shutil.copytree(tiny_llava, tmp_path / "m" / "base")
    monkeypatch.chdir(tmp_path / "a")
    model, _ = mmdora.load("../m/base")
    mmdora.inject(model, {"projector": {"method": "lora", "rank": 2}})
    mmdora.save_adapter(model, tmp_path / "loaded")
    mmdora.save_adapter(model, tmp_path / "named", base="../m/base")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder in (tmp_path / "loaded", tmp_path / "named"):
        assert Path(locate(folder).base).samefile(tmp_path / "m" / "base")
        peft = json.loads((folder / "adapter_config.json").read_text())
        assert Path(peft["base_model_name_or_path"]).samefile(tmp_path / "m" / "base")
        mmdora.load(folder)


def test_a_bundled_name_stays_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-llava").mkdir()
    assert lasting_name("tiny-llava") == "tiny-llava" and lasting_name("some/model") == "some/model"


def test_a_base_that_is_not_there_is_named_with_the_file_that_names_it(run, tmp_path):
    """As mmdora before 0.2 wrote it: a relative path, typed in another folder."""
    folder = shutil.copytree(run / "adapter", tmp_path / "mine")
    ours = json.loads((folder / "mmdora.json").read_text()) | {"base": "../m/base"}
    (folder / "mmdora.json").write_text(json.dumps(ours))
    with pytest.raises(MmdoraError, match=r"mine/mmdora\.json: its base is \.\./m/base, and there is no such folder"):
        locate(folder)


def test_a_composed_base_is_found_in_a_run_that_was_moved(run, tmp_path, tiny_llava):
    moved = shutil.copytree(run, tmp_path / "moved")
    ours = json.loads((moved / "adapter" / "mmdora.json").read_text()) | {"base": "/nowhere/run/base"}
    (moved / "adapter" / "mmdora.json").write_text(json.dumps(ours))
    with pytest.raises(MmdoraError, match="there is no such folder here"):
        locate(moved)
    shutil.copytree(tiny_llava, moved / "base")
    assert locate(moved).base == str(moved / "base")


def test_the_config_of_a_run_keeps_the_path_of_its_base(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, kept in (("m", str(tmp_path / "m")), ("tiny-llava", "tiny-llava"), ("some/model", "some/model")):
        config = RunConfig(model=Model(base=name))
        assert with_lasting_paths(config).base == kept and with_lasting_paths(config).data == config.data


def test_every_path_of_a_saved_config_means_the_same_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    (tmp_path / "clip.safetensors").write_text("")
    tree = {
        "model": {"compose": {"vision": "open_clip:ViT-L-14/clip.safetensors", "language": "m"}},
        "data": {
            "tasks": {"vqa": {"train": "v/train.jsonl", "eval": "v/val.jsonl", "images": "pictures"}},
            "feature_cache": "cache",
        },
        "training": {"output": "runs/x"},
        "adapt": {"vision": {"method": "none"}},
    }
    monkeypatch.chdir(tmp_path)
    with_lasting_paths(validate(RunConfig, tree, where=str)).save(tmp_path / "config.yaml")
    monkeypatch.chdir("/")
    saved = load_config(tmp_path / "config.yaml")
    assert saved.model.compose is not None and saved.data.tasks is not None
    assert saved.model.compose.vision == f"open_clip:ViT-L-14/{tmp_path}/clip.safetensors"
    task = saved.data.tasks["vqa"]
    paths = (saved.model.compose.language, task.train, task.eval, task.images, saved.data.feature_cache)
    assert [str(path) for path in (*paths, saved.training.output)] == [
        str(tmp_path / name) for name in ("m", "v/train.jsonl", "v/val.jsonl", "pictures", "cache", "runs/x")
    ]
    assert with_lasting_paths(saved) == saved


@pytest.mark.parametrize("place", ["hf://datasets/a/b/*.parquet", "https://example.org/a.jsonl"])
def test_an_address_stays_an_address(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"train": place, "stream": True, "images": "pictures"}
    config = validate(RunConfig, {"data": data, "training": {"steps": 1}}, where=str)
    assert with_lasting_paths(config).data.train == Path(place)
    assert with_lasting_paths(config).data.images == tmp_path / "pictures"
