"""What a name stands for is found once."""

import json
import shutil
from pathlib import Path

import pytest

import mmdora
from mmdora.config import ImageTokens
from mmdora.errors import MmdoraError
from mmdora.models.locate import Location, bundled, locate, resolve


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
    ours = json.loads((tmp_path / "mine" / "mmdora.json").read_text())
    (tmp_path / "mine" / "mmdora.json").write_text(json.dumps(ours | {"image_tokens": {"max": 40}}))
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
