"""Short runs of VL-BART with and without the feature cache."""

from pathlib import Path

import pytest
from processes import finished, launched
from shrunken_vlbart import picture, small_vlbart
from tiny_run import config_of, curve, silent

from mmdora.cli import main
from mmdora.models.open_clip.tower import OpenClipVisionModel
from mmdora.models.vlbart.mapped_rows import ROWS
from mmdora.records.reader import write_records
from mmdora.records.record import qa_record
from mmdora.train.run import train


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    for part in small_vlbart("resnet", grid=2):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """8 rows to learn and 4 held out, about 6 pictures; some rows have two, one has none."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(6):
        picture(number).save(folder / f"{number}.png")
    rows = [qa_record(f"q{i}", f"{i % 6}.png", [(f"what is {i}?", f"a {i}")]) for i in range(12)]
    for index in (2, 9):
        rows[index]["messages"][0]["content"].insert(0, {"type": "image"})
        rows[index]["images"].append("0.png")
    rows[4]["messages"][0]["content"] = rows[4]["messages"][0]["content"][1:]
    rows[4]["images"] = []
    write_records(folder / "train.jsonl", rows[:8])
    write_records(folder / "eval.jsonl", rows[8:])
    return folder


def tree(base, data, output, **more):
    adapt = {"projector": {"method": "full"}, "language": {"method": "dora", "rank": 2, "targets": ["q_proj"]}}
    training = {"output": str(output), "steps": 6, "batch_size": 2, "lr": 1e-2, "log_every": 1, "eval_every": 3}
    files = {"train": str(data / "train.jsonl"), "eval": str(data / "eval.jsonl")}
    return {"model": {"base": str(base)}, "adapt": adapt, "data": files | more, "training": training}


def test_the_losses_are_those_without_a_cache_and_the_tower_runs_once_per_image(base, data, tmp_path, monkeypatch):
    seen, forward = [], OpenClipVisionModel.forward

    def counted(self, pixel_values, **kwargs):
        if pixel_values.device.type != "meta":
            seen.append(len(pixel_values))
        return forward(self, pixel_values, **kwargs)

    monkeypatch.setattr(OpenClipVisionModel, "forward", counted)
    train(config_of(tree(base, data, tmp_path / "plain")), say=silent)
    without = sum(seen)
    seen.clear()
    cached = {"feature_cache": str(tmp_path / "cache")}
    train(config_of(tree(base, data, tmp_path / "cached", **cached)), say=silent)
    assert sum(seen) == 6 < without
    train(config_of(tree(base, data, tmp_path / "again", **cached)), say=silent)
    assert sum(seen) == 6
    plain, once, again = (curve(tmp_path / name) for name in ("plain", "cached", "again"))
    assert once == again
    assert len([entry for entry in plain if "loss" in entry]) == 6
    for name in ("loss", "eval_loss", "grad_norm"):
        values = [[entry[name] for entry in run if name in entry] for run in (plain, once)]
        assert values[0] == pytest.approx(values[1], rel=2e-5) and len(set(values[0])) > 1


def test_two_processes_fill_one_cache_and_loader_processes_read_it(base, data, tmp_path):
    import yaml

    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree(base, data, tmp_path / "two", feature_cache=str(tmp_path / "cache"))))
    assert finished(launched(["train", str(config), "--data.workers", "1"], tmp_path / "said")) == [0, 0]
    (rows,) = (tmp_path / "cache").glob(f"*/{ROWS}")
    assert rows.stat().st_size == 6 * 4 * 64 * 4  # images, tokens, width, bytes


def test_a_damaged_cache_is_mended_by_the_next_run(base, data, tmp_path, capsys):
    import yaml

    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree(base, data, tmp_path / "run", feature_cache=str(tmp_path / "cache"))))
    assert main(["train", str(config)]) == 0
    (rows,) = Path(tmp_path / "cache").glob(f"*/{ROWS}")
    whole = rows.read_bytes()
    rows.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    capsys.readouterr()
    with pytest.warns(UserWarning, match="1 damaged features were computed anew"):
        assert main(["train", str(config), "--training.output", str(tmp_path / "next")]) == 0
    assert rows.stat().st_size == len(whole)
    assert curve(tmp_path / "run")[0]["loss"] == pytest.approx(curve(tmp_path / "next")[0]["loss"], rel=2e-5)
