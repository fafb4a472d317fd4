"""What `mmdora demo` shows without arguments: adapters that come with the package."""

import pytest

import mmdora
from mmdora.cli import main
from mmdora.data_prep.easy_vqa import test_rows as easy_vqa_rows
from mmdora.demo import server
from mmdora.errors import MmdoraError
from mmdora.evaluate.run import evaluate
from mmdora.export.facts import methods_of
from mmdora.models.locate import ASSETS, SHIPPED, locate


@pytest.mark.parametrize("name", SHIPPED)
def test_an_adapter_is_small_and_of_the_bundled_base(name):
    folder = SHIPPED[name]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_500_000
    location = locate(folder)
    assert (location.base, location.adapter, location.run) == ("tiny-llava", folder, None)
    model, _ = mmdora.load(folder)
    assert list(methods_of(model.mmdora_plan)) == [name.lower()]
    for path in folder.iterdir():
        assert b"/root" not in path.read_bytes() and b"/tmp" not in path.read_bytes(), "a path of the machine"


def test_they_answer_better_than_the_base_and_the_card_says_so():
    rows = easy_vqa_rows()[::400]
    scores = {}
    for name, path in {"base": "tiny-llava", **SHIPPED}.items():
        scores[name] = evaluate(*mmdora.load(path), rows, task="easy-vqa").scores
    assert all(scores[name].overall.value > scores["base"].overall.value + 0.2 for name in SHIPPED)
    card = (ASSETS / "easy-vqa" / "README.md").read_text()
    assert all(f"| {name} |" in card for name in scores) and "make shipped-adapters" in card


def test_without_arguments_they_are_the_page_on_one_base(monkeypatch, capsys):
    asked = {}

    def columns(specs, **given):
        asked.update(given, specs=list(specs))
        raise MmdoraError("seen")

    monkeypatch.setattr(server, "load_columns", columns)
    assert main(["demo"]) == 2 and "seen" in capsys.readouterr().err
    assert asked["specs"] == ["base=tiny-llava", *(f"{name}={folder}" for name, folder in SHIPPED.items())]
    assert asked["shared_base"] is True
    assert main(["demo", "base=tiny-llava"]) == 2
    assert asked["specs"] == ["base=tiny-llava"] and asked["shared_base"] is False
