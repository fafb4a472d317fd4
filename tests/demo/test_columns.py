import threading

import pytest
from openai_stub import serving
from PIL import Image

import mmdora
from mmdora.demo.columns import describe, load_columns, parse_specs
from mmdora.demo.compare import answer
from mmdora.demo.turns import AnswerSettings, new_turn
from mmdora.errors import MmdoraError
from mmdora.export.run import export
from mmdora.families import Family, ask
from mmdora.models.locate import locate


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
        (["tie=tiny-llava"], "the name 'tie' is a vote's"),
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
    told = []
    specs = [f"base={tiny_llava}", f"dora={tmp_path / 'adapter'}"]
    first, second = load_columns(specs, dtype="bf16", device="cpu", say=told.append)
    assert told == [f"1/2 base: {first.kind}", f"2/2 dora: {second.kind}"] and first.place == second.place == "cpu"
    assert (first.name, second.name) == ("base", "dora")
    assert "2.2 M parameters" in first.kind
    assert second.kind.startswith("DoRA + full fine-tuning on ") and second.kind.endswith(" M trained")


def test_a_merged_export_says_what_was_merged(tmp_path):
    model, _ = mmdora.load("tiny-llava")
    mmdora.inject(model, {"language": {"method": "dora", "rank": 2}})
    mmdora.save_adapter(model, tmp_path / "adapter", base="tiny-llava")
    export(tmp_path / "adapter", tmp_path / "out", parity="tensors", say=lambda _: None)
    mmdora.merge(model)
    assert describe(model, locate(tmp_path / "out")) == "DoRA, merged, 2.2 M parameters"
    (tmp_path / "out" / "mmdora.json").unlink()
    assert describe(model, locate(tmp_path / "out")) == "checkpoint, 2.2 M parameters"


def test_a_column_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(MmdoraError, match=r"^column lora: "):
        load_columns([f"lora={tmp_path}"])


def test_a_server_is_a_column_like_any_other(tiny_llava):
    with serving(lambda body: (["red ", "circle"], 5, 3)) as stub:
        columns = load_columns(["here=tiny-llava", f"there=openai:{stub.url}#mine"], say=lambda _: None)
        assert columns[1].kind == f"mine, served by {stub.url.split('/')[2]}" and columns[0].place != columns[1].place
        settings = AnswerSettings(max_tokens=7, temperature=0.5, top_p=0.8, seed=3, system_prompt="be brief")
        *_, last = answer(columns, [new_turn(columns, "what?", settings)], [Image.new("RGB", (8, 8))])
    assert [state.status for state in last] == ["done", "done"]
    assert last[1].text == "red circle" and last[1].tokens == 3 and last[1].first_token_s
    asked = stub.asked[-1]
    assert [asked[key] for key in ("max_tokens", "temperature", "top_p", "seed")] == [7, 0.5, 0.8, 3]
    assert asked["messages"][0] == {"role": "system", "content": [{"type": "text", "text": "be brief"}]}


def test_a_server_that_refuses_pictures_is_asked_without():
    def answer_text(body):
        if any(part["type"] == "image_url" for message in body["messages"] for part in message["content"]):
            raise ConnectionError("no picture is read here")
        return ["red"], 5, 3

    with serving(answer_text) as stub:
        (column,) = load_columns([f"there=openai:{stub.url}#mine"], say=lambda _: None)
    assert not column.sees and column.kind.endswith(", without pictures")


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(MmdoraError, match=r"^column there: 127.0.0.1:9: cannot be reached"):
        load_columns(["there=openai:http://127.0.0.1:9/v1#m"])


def test_a_template_without_a_place_for_the_system_prompt_is_told(monkeypatch):
    (column,) = load_columns(["base=tiny-llava"], say=lambda _: None)
    prompt = ask("what?")
    prompt.messages.insert(0, {"role": "system", "content": [{"type": "text", "text": "be brief"}]})
    assert list(column.speak(prompt, AnswerSettings(max_tokens=1, system_prompt="be brief"), threading.Event()))
    monkeypatch.setattr(Family, "render", lambda *_, **__: "USER: what? ASSISTANT:")
    with pytest.raises(MmdoraError, match="no place for a system prompt"):
        list(column.speak(prompt, AnswerSettings(max_tokens=1, system_prompt="be brief"), threading.Event()))
