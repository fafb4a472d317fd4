"""`data.template`: one file gives the prompt in training, evaluation, on the page and in the export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scene_rows import draw_scenes
from tiny_run import config_of, silent
from transformers import AutoProcessor, AutoTokenizer

import mmdora
from mmdora.config import Data
from mmdora.demo.columns import load_columns
from mmdora.errors import MmdoraError
from mmdora.export.run import export
from mmdora.families import ask, family_of
from mmdora.files import sha256
from mmdora.models.chat_template import template_of, write_template
from mmdora.models.load import load_processor
from mmdora.models.locate import locate, with_lasting_paths
from mmdora.records.reader import write_records
from mmdora.train import overview, train
from mmdora.train.processes import Processes
from mmdora.train.sources import facts_of

OWN = (
    "{% for message in messages %}{{ message['role'] }}>\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant>\n{% endif %}"
)
QUESTION = ask("How many?").messages
WANTED = "user>\nHow many?\nassistant>\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    write_records(folder / "train.jsonl", draw_scenes(folder, range(4), questions=1))
    (folder / "own.jinja").write_text(OWN)
    return folder


def tree(folder: Path, template: str, **training: Any) -> dict[str, Any]:
    return {
        "adapt": {"language": {"method": "lora", "rank": 2, "targets": ["attention"]}},
        "data": {"train": str(folder / "train.jsonl"), "template": template},
        "training": {"output": str(folder / "run"), "steps": 1, "batch_size": 2, "save_every": 1} | training,
    }


def prompt_of(processor: Any) -> str:
    return family_of(processor).render(QUESTION, generation_prompt=True)


def test_one_file_gives_the_prompt_everywhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(folder)
    config = config_of(tree(folder, "own.jinja"))
    overview.show_batch(config)
    assert "assistant>\n⟦" in capsys.readouterr().out
    run = train(config, say=silent)
    monkeypatch.chdir(tmp_path)
    (folder / "own.jinja").unlink()  # From here on the adapter brings the template along.
    _, processor = mmdora.load(run)
    assert prompt_of(processor) == WANTED
    (column,) = load_columns([f"run={run}"], say=silent)
    assert column.name == "run"
    with pytest.raises(MmdoraError, match="has its own chat template; load it without --shared-base"):
        load_columns([f"run={run}"], shared_base=True, say=silent)
    export(run, tmp_path / "out", parity="tensors", say=silent)
    assert (tmp_path / "out/chat_template.jinja").read_text() == OWN
    assert prompt_of(AutoProcessor.from_pretrained(tmp_path / "out")) == WANTED
    assert prompt_of(load_processor("tiny-llava")) != WANTED


def test_its_path_means_the_same_from_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    (folder / "own.jinja").write_text(OWN)
    config = config_of(tree(folder, "own.jinja"))
    # Its content is a fact of the run, by which --resume and the choice of the best checkpoint know a change.
    assert facts_of(config, {}, Processes(config.training))["data"] == {"own.jinja": sha256(folder / "own.jinja")}
    assert with_lasting_paths(config_of(tree(folder, "own.jinja"))).data.template == folder / "own.jinja"


def test_a_file_that_is_no_template_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(MmdoraError, match=r"data\.template: .*absent\.jinja"):
        overview.show_batch(config_of(tree(folder, str(tmp_path / "absent.jinja"))))
    (tmp_path / "empty.jinja").write_text("\n")
    with pytest.raises(MmdoraError, match="is empty"):
        template_of(Data(template=tmp_path / "empty.jinja"))
    (tmp_path / "broken.jinja").write_text("{% for message in %}")
    with pytest.raises(MmdoraError, match="the chat template fails: TemplateSyntaxError"):
        overview.show_batch(config_of(tree(folder, str(tmp_path / "broken.jinja"))))


def test_it_is_the_only_one_in_the_export(tmp_path: Path):
    load_processor("tiny-llava").tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{# earlier #}"}))
    (tmp_path / "chat_template.json").write_text('{"chat_template": "{# earlier #}"}')
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tools.jinja").write_text("{# earlier #}")
    write_template(tmp_path, OWN)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == OWN
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "# earlier #" in path.read_text()] == []


def test_an_adapter_whose_template_is_no_text_is_refused(tmp_path: Path):
    model, _ = mmdora.load("tiny-llava")
    mmdora.inject(model, {"language": {"method": "lora", "rank": 1, "targets": ["attention"]}})
    mmdora.save_adapter(model, tmp_path, base="tiny-llava", template=OWN)
    assert locate(tmp_path).template == OWN
    mmdora.save_adapter(model, tmp_path, base="tiny-llava", template=["x"])  # type: ignore[arg-type]
    with pytest.raises(MmdoraError, match="chat_template is no text"):
        locate(tmp_path)
