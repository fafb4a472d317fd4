import threading
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import mmdora
from mmdora.demo import compare
from mmdora.demo.compare import (
    MAX_QUESTION,
    MAX_UPLOAD,
    Column,
    Settings,
    answer,
    load_columns,
    parse_specs,
    read_image,
)
from mmdora.errors import MmdoraError
from mmdora.predict import ask, generate

PICTURE = Image.new("RGB", (64, 64), "teal")
QUESTION = "what color is the shape?"


@pytest.fixture
def columns(tiny_llava):
    """Two models that never end an answer by themselves, and whose answers differ."""
    processor = AutoProcessor.from_pretrained(tiny_llava)
    made = []
    for seed, name in enumerate(("base", "dora")):
        model = AutoModelForImageTextToText.from_pretrained(tiny_llava).eval()
        model.generation_config.suppress_tokens = [model.generation_config.eos_token_id]
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.model.multi_modal_projector.linear_2.weight)
        made.append(Column(name, model, processor, "a model"))
    return made


def last(states):
    return list(states)[-1]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "1 to 4 models; found 0"),
        ([f"m{i}=tiny-llava" for i in range(5)], "1 to 4 models; found 5"),
        (["tiny-llava"], "expected NAME=MODEL"),
        (["=tiny-llava"], "expected NAME=MODEL"),
        (["base="], "expected NAME=MODEL"),
        (["a=tiny-llava", "a=other"], "'a' is there twice"),
        (["a=./not/there"], "there is no folder ./not/there"),
        (["a=/not/there"], "there is no folder /not/there"),
        (["a=one/two/three"], "there is no folder one/two/three"),
    ],
)
def test_bad_specs(specs, message):
    with pytest.raises(MmdoraError, match=message):
        parse_specs(specs)


def test_a_missing_folder_beside_others_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_specs(["a=runs/lora"]) == {"a": "runs/lora"}  # may be OWNER/NAME on the hub
    (tmp_path / "runs").mkdir()
    with pytest.raises(MmdoraError, match="there is no folder runs/lora"):
        parse_specs(["a=runs/lora"])
    (tmp_path / "runs" / "lora").mkdir()
    assert parse_specs(["b = runs/lora", "c=x=y"]) == {"b": "runs/lora", "c": "x=y"}


def test_load_columns_describes_base_and_adapter(tiny_llava, tmp_path):
    model, _ = mmdora.load(str(tiny_llava))
    mmdora.inject(model, {"language": {"method": "dora", "rank": 2}, "projector": {"method": "full"}})
    mmdora.save_adapter(model, tmp_path / "adapter", base=str(tiny_llava))
    first, second = load_columns([f"base={tiny_llava}", f"dora={tmp_path / 'adapter'}"])
    assert (first.name, second.name) == ("base", "dora")
    assert "2.2 M parameters" in first.kind
    assert second.kind.startswith("DoRA + full fine-tuning on ") and second.kind.endswith(" M trained")


def test_a_merged_export_says_what_was_merged(tmp_path, columns):
    (tmp_path / "README.md").write_text("---\ntags:\n- mmdora\n- dora\n---\n# x\n")
    assert compare.describe(columns[0].model, str(tmp_path)) == "DoRA, merged, 2.2 M parameters"
    (tmp_path / "README.md").write_text("no front matter")
    assert compare.describe(columns[0].model, str(tmp_path)) == "checkpoint, 2.2 M parameters"


def test_a_column_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(MmdoraError, match=r"^column lora: "):
        load_columns([f"lora={tmp_path}"])


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0},
        {"max_tokens": 100_000},
        {"max_tokens": 3.5},
        {"max_tokens": True},
        {"max_tokens": None},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "1"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": [1]},
    ],
)
def test_settings_out_of_range(bad):
    with pytest.raises(MmdoraError, match=next(iter(bad)).replace("_", "[ -]")):
        Settings(**bad)


def test_columns_answer_in_turn_and_as_generate_does(columns):
    seen = list(answer(columns, PICTURE, f"  {QUESTION}\n", Settings(max_tokens=24)))
    assert [state.status for state in seen[0]] == ["waiting", "waiting"]
    assert ("running", "waiting") in {tuple(state.status for state in states) for states in seen}
    assert ("done", "running") in {tuple(state.status for state in states) for states in seen}
    expected = [
        generate(column.model, column.processor, [ask(QUESTION, PICTURE)], max_new_tokens=24)[0] for column in columns
    ]
    assert [state.text for state in seen[-1]] == expected and expected[0] != expected[1]
    for state in seen[-1]:
        assert state.status == "done" and state.tokens == 24 and state.error is None
        assert state.first_token_s and state.tokens_per_s


def test_an_answer_streams(columns, monkeypatch):
    monkeypatch.setattr(compare, "REFRESH", 0)
    lengths = [states[0].tokens for states in answer(columns[:1], PICTURE, QUESTION, Settings(max_tokens=6))]
    assert lengths == [0, 0, 1, 2, 3, 4, 5, 6, 6, 6]


def test_the_same_seed_for_every_model(columns):
    twins = [columns[0], replace(columns[0], name="twin")]
    settings = Settings(max_tokens=16, temperature=1.0, seed=5)
    first, second = last(answer(twins, PICTURE, QUESTION, settings))
    assert first.text == second.text
    other = last(answer(twins[:1], PICTURE, QUESTION, replace(settings, seed=6)))[0]
    assert other.text != first.text


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("cheese\nis out"), "RuntimeError: cheese is out"),
        (torch.OutOfMemoryError("CUDA"), "out of memory"),
    ],
)
def test_one_failing_model_leaves_the_other_alive(columns, error, message):
    def fail(*_):
        raise error

    handle = columns[0].model.register_forward_pre_hook(fail)
    broken, alive = last(answer(columns, PICTURE, QUESTION, Settings(max_tokens=3)))
    assert broken.status == "failed" and message in broken.error
    assert alive.status == "done" and alive.tokens == 3
    handle.remove()
    assert [state.status for state in last(answer(columns, PICTURE, QUESTION, Settings(max_tokens=3)))] == ["done"] * 2


def test_stop_ends_the_running_model_and_spares_the_rest(columns):
    stop, steps = threading.Event(), []
    for column in columns:
        column.model.register_forward_pre_hook(lambda *_: steps.append(time.sleep(0.02)))
    states = answer(columns, PICTURE, QUESTION, Settings(max_tokens=500), stop)
    while next(states)[0].tokens < 2:
        pass
    stop.set()
    first, second = last(states)
    assert (first.status, second.status) == ("stopped", "stopped")
    assert first.text and first.tokens < 12 and second.tokens == 0
    assert len(steps) == first.tokens


def test_closing_frees_the_device(columns):
    states = answer(columns, PICTURE, QUESTION, Settings(max_tokens=500))
    while next(states)[0].tokens < 2:
        pass
    assert compare._device.locked()
    states.close()
    assert not compare._device.locked()
    assert not any(thread.name == "mmdora-generate" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("question", "message"), [("  ", "Type a question"), (None, "Type a question"), ("x" * (MAX_QUESTION + 1), "8,000")]
)
def test_bad_questions(columns, question, message):
    with pytest.raises(MmdoraError, match=message):
        next(answer(columns, PICTURE, question, Settings()))


def test_bad_uploads(tmp_path):
    upload = tmp_path / "secret" / "picture.png"
    upload.parent.mkdir()
    for content, message in [
        (b"", "empty"),
        (b"<svg/>", "not an image"),
        (b"\0" * (MAX_UPLOAD + 1), "larger than 10 MB"),
    ]:
        upload.write_bytes(content)
        with pytest.raises(MmdoraError, match=message) as caught:
            read_image(upload)
        assert "secret" not in str(caught.value)
    Image.new("1", (5_000, 4_001)).save(upload)
    with pytest.raises(MmdoraError, match="20 megapixels"):
        read_image(upload)


def test_examples_are_there_and_all_different():
    pairs = compare.examples(6)
    assert len({path for path, _ in pairs}) == len({question for _, question in pairs}) == 6
    for path, _ in pairs:
        assert read_image(path).size == (64, 64)
