"""A run that was started with relative paths is resumed, exported and evaluated from another folder."""

import shutil
from pathlib import Path

import yaml
from tiny_run import exit_code, first_turns, forked, tree_for

from mmdora.config import load_config


def test_paths_of_a_run_mean_the_same_from_any_folder(scene_records, tiny_llava, tmp_path, monkeypatch):
    here, told = tmp_path / "here", tmp_path / "told"
    (here / "data").mkdir(parents=True)
    shutil.copyfile(first_turns(scene_records, 6), here / "data/train.jsonl")
    shutil.copytree(tiny_llava, here / "base")
    (here / "pictures").symlink_to(scene_records.parent)
    tree = tree_for(Path("data/train.jsonl"), Path("runs/x"), evaluates=False, steps=2, save_every=1)
    tree["data"]["images"] = "pictures"
    tree["model"] = {"base": "base"}
    (here / "c.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(here)
    assert exit_code(forked(["train", "c.yaml"], told)) == 0, told.read_text()
    saved = load_config("runs/x/config.yaml")
    assert saved.data.train == here / "data/train.jsonl" and saved.data.images == here / "pictures"
    assert saved.training.output == here / "runs/x" and saved.base == str(here / "base")
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(here / "runs/x/checkpoint-2")
    (here / "runs/x/complete.json").unlink()
    for command in (
        ["train", "here/runs/x/config.yaml", "--resume"],
        ["export", "here/runs/x", "out", "--parity", "logits"],
        ["eval", "x=here/runs/x", "--data", "here/data/train.jsonl", "--images", "here/pictures", "--limit", "2"],
    ):
        assert exit_code(forked(command, told)) == 0, told.read_text()
    assert (here / "runs/x/complete.json").is_file() and (tmp_path / "out/config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "out", "runs", "told"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["eval"]
