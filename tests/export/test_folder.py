"""Where an export comes from and where it goes: sources, folders, full disks."""

import resource
import shutil

import pytest
from exports import DORA, moved_adapter, same_files
from huggingface_hub import ModelCard

from mmdora.errors import MmdoraError
from mmdora.export.run import export


@pytest.fixture(scope="module")
def adapter(tiny_llava, tmp_path_factory):
    return moved_adapter(tiny_llava, DORA, tmp_path_factory.mktemp("adapter"))


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
