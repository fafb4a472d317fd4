"""The command line: help, one-line errors, and each command end to end on the bundled base."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmdora.cli import app, main
from mmdora.cli.config_help import describe
from mmdora.config import Compose, Gates, Quantize, RunConfig

COMMANDS = (
    "quickstart",
    "inspect",
    "train",
    "eval",
    "export",
    "prune",
    "demo",
    "verify",
    "analyze",
    "study",
    "prep",
    "env",
)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def config(tmp_path: Path, tiny_llava: str, scene_records: Path) -> Path:
    """A config that trains two steps on drawn scenes."""
    path = tmp_path / "config.yaml"
    values = {
        "model": {"base": tiny_llava},
        "adapt": {"language": {"method": "dora", "rank": 2}},
        "data": {"train": str(scene_records)},
        "training": {"output": str(tmp_path / "run"), "steps": 2, "batch_size": 2, "log_every": 1, "save_every": 1},
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def _error(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    """The one line that `tokens` give on stderr."""
    assert main(tokens) == 2
    captured = capsys.readouterr().err
    lines = captured.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("mmdora: error: "), captured
    return lines[0]


def test_help_waits_for_no_heavy_import() -> None:
    code = (
        "import sys; from mmdora.cli import main; assert main(['--help']) == 0; "
        "heavy = {'torch', 'transformers', 'gradio', 'matplotlib', 'datasets', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f" {command} " in done.stdout


def test_paths_are_checked_before_torch_is_imported(config: Path, tmp_path: Path) -> None:
    """The import takes seconds, which nobody should wait for a misspelt path."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    commands = [
        ["train", "nowhere.yaml"],
        ["train", str(config), "--model.base", "./nowhere"],
        ["train", str(config), "--data.train", "nowhere.jsonl"],
        ["train", str(config), "--data.images", "nowhere"],
        ["train", str(config), "--adapt.vison.method", "lora"],
        ["eval", "./nowhere", "--data", str(tmp_path)],
        ["eval", "tiny-llava", "--data", "nowhere.jsonl"],
        ["eval", "tiny-llava", "--data", str(tmp_path), "--out", str(tmp_path / "file" / "results")],
        ["export", "./nowhere", "out"],
        ["export", "tiny-llava", str(tmp_path / "file")],
    ]
    code = (
        "import sys; from mmdora.cli import main\n"
        f"for command in {commands!r}:\n"
        "    assert main(command) == 2, command\n"
        "    assert 'torch' not in sys.modules, command"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(commands), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"mmdora {command}" in shown
    assert command == "env" or "Example" in shown or "mmdora prep NAME" in shown


def test_train_help_lists_every_config_key(capsys: pytest.CaptureFixture[str]) -> None:
    def keys(values: dict, prefix: str = "") -> set[str]:
        found = set()
        for name, value in values.items():
            found |= keys(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}"}
        return found

    every = {key.replace("adapt.language.", "adapt.MODALITY.") for key in keys(RunConfig().to_dict())}
    every = {key for key in every if not key.startswith(("adapt.vision.", "adapt.projector."))}
    for section, kind in {"model.compose": Compose, "model.quantize": Quantize, "adapt.gates": Gates}.items():
        every = every - {section} | {f"{section}.{field.name}" for field in dataclasses.fields(kind)}
    described = {key.name: key for section in describe().values() for key in section}
    assert set(described) == every
    assert described["training.lr"].kind == "float" and "[default: 0.0001]" in described["training.lr"].text
    assert described["model.dtype"].kind == "fp32|bf16|fp16"

    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for name, key in described.items():
        assert f"--{name}" in shown
        assert key.text.split(";")[0].split(" [")[0] in shown
    assert "[default: tiny-llava]" in shown


@pytest.mark.parametrize(
    ("content", "overrides", "parts"),
    [
        ("adapt: {language: {lora_rnak: 8}}", (), ("config.yaml", "adapt.language.lora_rnak", "unknown key")),
        ("adapt: {language: {rnak: 8}}", (), ("rnak", "did you mean 'rank'")),
        ("adapt: {language: {rank: 8.5}}", (), ("config.yaml", "adapt.language.rank", "8.5")),
        ("adapt: {language: {rank: 0}}", (), ("adapt.language.rank", "0")),
        ("model: {trust_remote_code: true}", (), ("model.trust_remote_code", "add --trust-remote-code")),
        ("", (), ("config.yaml", "expected sections")),
        ("a: [1", (), ("config.yaml", "not valid YAML")),
        ("x: !!python/object/apply:os.system ['touch CANARY']", (), ("config.yaml", "not valid YAML")),
        ("model: {}", ("--training.stepps", "3"), ("command line", "training.stepps", "did you mean 'steps'")),
        ("model: {}", ("--training.steps",), ("command line", "training.steps", "needs a value")),
        ("model: {}", ("extra",), ("command line", "'extra'")),
        ("model: {}", (), ("data.train",)),
    ],
)
def test_a_bad_config_is_one_line(
    content: str,
    overrides: tuple[str, ...],
    parts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(content, encoding="utf-8")
    line = _error(capsys, "train", "config.yaml", *overrides)
    for part in parts:
        assert part in line
    assert not Path("CANARY").exists()


def test_files_that_are_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such config file" in _error(capsys, "train", str(tmp_path / "missing.yaml"))
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    assert "binary.yaml: not a readable UTF-8 file" in _error(capsys, "train", str(tmp_path / "binary.yaml"))
    assert "not a readable" in _error(capsys, "train", str(tmp_path))


@pytest.mark.parametrize(
    ("tokens", "hint"),
    [
        (("trian", "x.yaml"), 'Did you mean "train"'),
        (("eval", "tiny-llava"), "--data"),
        (("eval", "tiny-llava", "--data", "x.jsonl"), "x.jsonl"),
        (("eval", "tiny-llava", "--data", __file__, "--task", "vqa2"), "vqav2"),
        (("eval", "tiny-llava", "--data", __file__, "--suite", "paper"), "paper-llava"),
        (("eval", "tiny-llava", "--data", "x", "--scores", "gqa=1"), "--suite"),
        (("export", "a", "b", "--dtype", "fp64"), "fp32"),
        (("demo", "--prot", "1"), "--port"),
        (("prep", "easy-vqaa", "--out", "x"), "easy-vqa"),
        (("inspect", "tiny-llava", "--adapt.language.rank", "4"), "--config"),
        (("quickstart", "--training.output", "x", "--no-demo"), "--out"),
    ],
)
def test_a_bad_command_line_is_one_line(
    tokens: tuple[str, ...],
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hint in _error(capsys, *tokens)
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_operating_system_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "file" in _error(capsys, "prep", "easy-vqa", "--out", str(tmp_path / "file"))


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmdora.env.collect", interrupted)
    assert main(["env"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_inspect_shows_parts_plan_and_memory(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = yaml.safe_load(config.read_text())["model"]["base"]
    assert main(["inspect", tiny]) == 0
    shown = capsys.readouterr().out
    for text in ("vision", "multi_modal_projector", "LlamaDecoderLayer", "q_proj", "alike, one shown"):
        assert text in shown
    assert "dora" not in shown.replace("dora.yaml", "")

    assert main(["inspect", tiny, "--config", str(config), "--adapt.language.rank", "3"]) == 0
    shown = capsys.readouterr().out
    tower, language = shown.index("vision_tower"), shown.index("model.language_model")
    assert "← dora r 3" in shown[language:] and "←" not in shown[tower:language], "q_proj of language only"
    for text in ("trainable", "gradients", "moments of the optimizer", "activations", "buffers of backward"):
        assert text in shown


def test_dry_run_shows_the_loss_mask_and_trains_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("scene-0: "))
    question, _, answer = row.partition("⟦")
    assert "× 64" in question and "ASSISTANT:" in question, "no loss on image and question"
    assert "⟧" in answer and "trainable" in shown
    assert not (config.parent / "run").exists()


def test_train_resume_eval_export(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = tmp_path / "run", yaml.safe_load(config.read_text())["data"]["train"]
    assert main(["train", str(config), "--adapt.language.rank", "4"]) == 0
    assert str(run) in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["adapt"]["language"]["rank"] == 4

    assert "--resume" in _error_last(capsys, "train", str(config))
    assert "rank" in _error_last(capsys, "train", str(config), "--resume"), "another rank cannot be resumed"
    same = ("train", str(config), "--adapt.language.rank", "4")
    older = str(run / "checkpoint-1")
    assert "checkpoint-2" in _error_last(capsys, *same, "--resume", older), "two futures of one run would mix"
    shutil.rmtree(run / "checkpoint-2")
    assert main([*same, "--resume", older]) == 0
    assert json.loads((run / "complete.json").read_text())["resumed"] is True

    capsys.readouterr()
    out = tmp_path / "scores"
    assert main(["eval", f"base={run}", str(run), "--data", data, "--limit", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "base" in shown and "run" in shown and "│         2 │" in shown
    assert {path.name for path in (out / "exact-records-first-2").iterdir()} == {
        "base",
        "run",
        "comparison.json",
        "errors.html",
        ".mmdora-files.json",
    }
    assert len((out / "exact-records-first-2" / "run" / "predictions.jsonl").read_text().splitlines()) == 2

    assert main(["export", str(run), str(tmp_path / "merged"), "--dtype", "bf16", "--for", "llama.cpp"]) == 0
    shown = capsys.readouterr().out
    assert "bf16 on" in shown and "max-rel" in shown
    assert len(shown.splitlines()) > 1, "the conversion commands, or the line that says there are none"
    assert "empty" in _error_last(capsys, "export", str(run), str(tmp_path / "merged"))


def _error_last(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    """Like `_error`, where loading a model may have written before."""
    capsys.readouterr()
    assert main(tokens) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("mmdora: error: ")
    return line


def test_prep_lists_and_makes_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prep", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "easy-vqa" in listed and "MIT" in listed and "scenes" in listed
    assert main(["prep", "scenes", "--out", str(tmp_path), "--rows", "2", "--held-out", "1"]) == 0
    assert "train: 2 records, test: 1 records" in capsys.readouterr().out
    assert (tmp_path / "train.jsonl").is_file()


def test_env_names_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    for name in ("mmdora", "python", "torch", "transformers", "gradio"):
        assert name in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import mmdora

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == mmdora.__version__
    assert app.name[0] == "mmdora"


def test_output_that_nobody_reads_on_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)  # Before the process begins: it must not depend on which of the two is faster.
    command = [sys.executable, "-m", "mmdora", "eval", "--list"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 141)
