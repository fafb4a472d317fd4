"""The facts of an export: what is written is read back, and what is damaged is said."""

import json
from pathlib import Path

import pytest
from exports import DORA, moved_adapter, run_folder

from mmdora.config import Data, RunConfig
from mmdora.errors import MmdoraError
from mmdora.export.card import card
from mmdora.export.facts import read_facts, run_facts
from mmdora.export.run import export
from mmdora.export.snippet import snippet
from mmdora.families import family_of
from mmdora.models.load import load_processor


@pytest.fixture(scope="module")
def out(tiny_llava, tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts")
    adapter = moved_adapter(tiny_llava, DORA, folder / "adapter")
    run = run_folder(folder / "run", adapter, tiny_llava, train="some/where/records.jsonl")
    scores = {"easy-VQA": 0.953, "rows": 9673}
    export(run, folder / "out", dtype="bf16", scores=scores, parity="tensors", say=lambda _: None)
    return folder / "out"


def test_the_facts_hold_what_the_card_says(out, tiny_llava):
    facts = read_facts(out)
    assert facts is not None
    assert (facts.name, facts.base, facts.dtype, facts.methods) == ("out", "tiny-llava", "bf16", ["dora", "full"])
    assert facts.scores == {"easy-VQA": 0.953, "rows": 9673}
    assert facts.shown_scores == {"easy-VQA": "95.3%", "rows": "9673"}
    assert facts.parity["kind"] == "tensors" and facts.parity["tensors"] == 113 and facts.parity["beyond"] <= 1e-5
    assert facts.run is not None and facts.run["data"] == ["where/records.jsonl"]
    assert facts.run["config"]["adapt"]["language"]["rank"] == 4 and "output" not in facts.run["config"]["training"]
    assert facts.plan is not None and facts.versions.keys() >= {"mmdora", "torch", "transformers"}
    code = snippet("out", out, family_of(load_processor(tiny_llava)))
    assert (out / "README.md").read_text() == card(facts, code)


def test_no_path_of_this_machine_and_no_defaults(out, tiny_llava):
    card_text = (out / "README.md").read_text()
    for text in (card_text, (out / "mmdora.json").read_text()):
        assert str(out.parent) not in text and str(Path(tiny_llava).parent) not in text
    assert "dropout_mode" not in card_text and "accumulation" not in card_text and "rank: 4" in card_text


def test_a_public_dataset_is_named_and_ones_own_is_not(tmp_path):
    for name, licence in (("easy-vqa", "MIT"), ("folder", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_card.json").write_text(json.dumps({"name": name, "licence": licence}))
    own = run_facts(RunConfig(data=Data(train=tmp_path / "folder/train.jsonl")))
    public = run_facts(RunConfig(data=Data(train=tmp_path / "easy-vqa/train.jsonl")))
    assert own is not None and own["datasets"] == [] and own["data"] == ["folder/train.jsonl"]
    assert public is not None and public["datasets"] == ["easy-vqa"]
    assert str(tmp_path) not in json.dumps([own, public])


def test_the_lineage_of_an_adapted_export_names_every_step(out, tiny_llava, tmp_path):
    """A DoRA after a DoRA after a DoRA: the export of a run on an export of a run on an export."""
    assert "## Lineage" not in (out / "README.md").read_text()
    base, steps = out, [("out", "tiny-llava", "where/records.jsonl")]
    for name in ("second", "third"):
        adapter = moved_adapter(str(base), DORA, tmp_path / name / "adapter")
        run = run_folder(tmp_path / name / "run", adapter, str(base), train=f"data/{name}.jsonl")
        export(run, tmp_path / name / name, dtype="bf16", parity="tensors", say=lambda _: None)
        steps.append((name, base.name, f"data/{name}.jsonl"))
        base = tmp_path / name / name
    facts = read_facts(base)
    assert facts is not None and facts.root == "tiny-llava" and facts.base == "second"
    told = [(step["name"], step["base"], *step["data"]) for step in (*facts.lineage, facts.step)]
    assert told == steps
    text = (base / "README.md").read_text()
    lines = [f"- `{name}`: `{before}`, adapted with dora, full on `{data}`" for name, before, data in steps]
    assert "\n".join(lines) in text and str(tmp_path) not in text


def test_a_folder_without_facts_is_none(tiny_llava):
    assert read_facts(Path(tiny_llava)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "or by a newer one; update mmdora"),
        ({"plan": {"parts": {}}}, "damaged .*export again"),
        ({"scores": 3}, "damaged .*export again"),
        ({"lineage": [{"name": "x"}]}, "damaged .*no step of a lineage.*export again"),
        ({"surplus": 1}, "damaged .*export again"),
    ],
)
def test_damaged_facts_are_one_line(out, tmp_path, change, message):
    values = json.loads((out / "mmdora.json").read_text()) | change
    (tmp_path / "mmdora.json").write_text(json.dumps(values))
    with pytest.raises(MmdoraError, match=rf"mmdora\.json: .*{message}"):
        read_facts(tmp_path)
