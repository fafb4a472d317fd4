"""Runs as they lie on disk, the command, and its files."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from shrunken import shrunken_llava

import mmdora
from mmdora.adapt.inject import trainable_parameters
from mmdora.analysis.page import CSV, PAGE
from mmdora.cli import main
from mmdora.errors import MmdoraError
from mmdora.export.layout import save_checkpoint
from mmdora.outputs.written import FILES
from mmdora.train.checkpoint import seal, staged

ADAPT = {
    "vision": {"method": "dora", "rank": 2, "targets": ["attention"]},
    "projector": {"method": "full"},
    "language": {"method": "lora", "rank": 2, "targets": ["attention"]},
}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and, as training leaves it, a run on it: three sealed checkpoints, `adapter/` a copy of the last."""
    folder = tmp_path_factory.mktemp("made")
    model = shrunken_llava()
    save_checkpoint(model, folder / "base")
    mmdora.inject(model, ADAPT)
    for step in (9, 20, 100):  # not in the order of their names
        with torch.no_grad():
            for _, parameter, _, _ in trainable_parameters(model):
                parameter.add_(0.01 * torch.randn_like(parameter))
        with staged(folder / "run", step) as checkpoint:
            mmdora.save_adapter(model, checkpoint, base=str(folder / "base"))
            (checkpoint / "optimizer.pt").write_bytes(b"0" * 99)
            seal(checkpoint, {"step": step})
    shutil.copytree(folder / "run" / "checkpoint-100", folder / "run" / "adapter")
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def steps(rows: list[Any]) -> list[int | None]:
    return list(dict.fromkeys(row.step for row in rows))


def test_checkpoints_in_their_order_and_the_last_once(run):
    rows = mmdora.analyze(run)
    assert steps(rows) == [9, 20, 100]
    assert len(rows) == 3 * len({row.name for row in rows}) and {row.run for row in rows} == {"run"}
    alone = mmdora.analyze(run / "checkpoint-20")
    assert [row.delta_d for row in alone] == [row.delta_d for row in rows if row.step == 20]
    assert steps(alone) == [None]


def test_an_adapter_that_is_no_checkpoint_counts(run):
    shutil.rmtree(run / "checkpoint-100")
    assert steps(mmdora.analyze(run)) == [9, 20, None]


def test_what_an_analysis_does_not_need_may_be_gone(run):
    (run / "checkpoint-9" / "optimizer.pt").unlink()
    assert steps(mmdora.analyze(run, say=lambda line: pytest.fail(line))) == [9, 20, 100]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "one bit": lambda folder: flip(folder / WEIGHTS),
    "cut": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100]),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "no manifest, cut": lambda folder: [
        (folder / "manifest.json").unlink(),
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100]),
    ],
    "no manifest, no plan": lambda folder: (
        [(folder / name).unlink() for name in ("manifest.json", "mmdora.json")]
        + [(folder / "adapter_config.json").write_text("{}")]
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_passed_over(run, damage):
    DAMAGE[damage](run / "checkpoint-20")
    said: list[str] = []
    assert steps(mmdora.analyze(run, say=said.append)) == [9, 100]
    assert len(said) == 1 and "checkpoint-20" in said[0] and said[0].endswith("passed over")


def test_nothing_whole_is_an_error(run):
    shutil.rmtree(run / "adapter")
    for step in (9, 20, 100):
        flip(run / f"checkpoint-{step}" / WEIGHTS)
    with pytest.raises(MmdoraError, match="nothing to analyze"):
        mmdora.analyze(run, say=lambda line: None)


class Texts(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_files(run, tmp_path):
    out = tmp_path / "out"
    rows = mmdora.analyze({"<b>one": run, "other": run / "checkpoint-9"}, out=out)
    assert {path.name for path in out.iterdir()} == {CSV, PAGE, "scatter.png", "shares.png", "layers.png", FILES}
    table = list(csv.DictReader((out / CSV).open(encoding="utf-8", newline="")))
    assert len(table) == len(rows)
    for line, row in zip(table, rows, strict=True):
        assert line["name"] == row.name and float(line["delta_norm"]) == row.delta_norm
        assert line["delta_m"] == ("" if row.delta_m is None else repr(row.delta_m))
        assert line["step"] == ("" if row.step is None else str(row.step))
    page = Texts()
    page.feed((out / PAGE).read_text(encoding="utf-8"))
    assert "<b>one" in page.text and not [tag for tag, _ in page.tags if tag in ("b", "script", "link", "iframe")]
    pictures = [values for tag, values in page.tags if tag == "img"]
    assert len(pictures) == 3 and all(values["alt"] for values in pictures)
    for _, values in page.tags:
        assert not values.get("href") and values.get("src", "data:").startswith("data:")
    for name in ("scatter", "shares", "layers"):
        picture = Image.open(BytesIO((out / f"{name}.png").read_bytes()))
        assert min(picture.size) > 200 and picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50
    for row in rows:
        assert row.name in page.text


def one_line(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    assert main(["analyze", *tokens]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("mmdora: error: ")
    return lines[0]


def test_mistakes_are_one_line(run, tmp_path, capsys):
    assert "name at least one run" in one_line(capsys)
    assert "nothing to analyze here" in one_line(capsys, str(tmp_path / "nowhere"))
    assert "its own name" in one_line(capsys, str(run), str(run))
    (tmp_path / "file").write_text("")
    assert "is a file" in one_line(capsys, str(run), "--out", str(tmp_path / "file"))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_model.bin").write_bytes(b"")
    assert "pickle" in one_line(capsys, str(tmp_path / "pickled"))
    ours = run / "adapter" / "mmdora.json"
    ours.write_text(json.dumps(json.loads(ours.read_text()) | {"base": "tiny-llava"}))
    assert "trained on another base" in one_line(capsys, str(run / "adapter"))
    assert not (run / "adapter" / "analysis").exists() and not (run / "analysis").exists()


def test_a_real_run(scene_records, tiny_llava, tmp_path, capsys):
    """Trained by `mmdora train`, analyzed by `mmdora analyze`."""
    values = {
        "model": {"base": tiny_llava},
        "adapt": {part: {"method": "full"} for part in ("projector",)} | {"language": {"method": "dora", "rank": 2}},
        "data": {"train": str(scene_records), "max_turns": 1},
        "training": {"output": str(tmp_path / "run"), "steps": 2, "batch_size": 2, "save_every": 1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert main(["train", str(tmp_path / "config.yaml")]) == 0
    capsys.readouterr()
    assert main(["analyze", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"run +language dora +\d+\.\d% ", shown) and re.search(r"run +projector full ", shown)
    words = " ".join(shown.split())
    assert "run (DoRA): over 4 query matrices" in words and "run (DoRA): over 28 language matrices" in words
    assert "".join(shown.split()).endswith(str(tmp_path / "run" / "analysis" / PAGE))
    with (tmp_path / "run" / "analysis" / CSV).open(encoding="utf-8") as file:
        assert {line["step"] for line in csv.DictReader(file)} == {"1", "2"}
