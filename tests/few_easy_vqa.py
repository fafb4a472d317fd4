"""easy-VQA cut to its first pictures: its 4,000 pictures take most of the time of a test that trains a few steps."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import easy_vqa as package

from mmdora.data_prep import easy_vqa
from mmdora.prepare.run import write_splits


def prepare_few(out: Path, pictures: int = 16) -> dict[str, int]:
    """Act as `easy_vqa.prepare`, on `pictures` pictures of each split and their questions, about ten each."""
    whole = Path(package.__file__).parent / "data"
    with TemporaryDirectory() as folder:
        for split in ("train", "test"):
            (cut := Path(folder, split)).joinpath("images").mkdir(parents=True)
            rows = json.loads((whole / split / "questions.json").read_text(encoding="utf-8"))
            (cut / "questions.json").write_text(json.dumps([row for row in rows if row[2] < pictures]))
            for number in range(pictures):
                shutil.copyfile(whole / split / "images" / f"{number}.png", cut / "images" / f"{number}.png")
        return write_splits(out, easy_vqa.DATASET, partial(easy_vqa._make, Path(folder), out))
