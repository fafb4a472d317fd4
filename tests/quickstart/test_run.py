"""The quickstart end to end in a few steps on the bundled base, then again: reuse, resume, change."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from families import checkpoints
from few_easy_vqa import prepare_few
from rich.console import Console

from mmdora import cli
from mmdora.config import load_config
from mmdora.data_prep import easy_vqa, scenes
from mmdora.errors import MmdoraError
from mmdora.export import parity
from mmdora.models.load import load
from mmdora.outputs.written import FILES
from mmdora.quickstart.families import FAMILIES, METHODS, Family, QuickTask
from mmdora.quickstart.findings import BASELINE, verdict
from mmdora.quickstart.run import quickstart
from mmdora.quickstart.steps import Steps, duration
from mmdora.quickstart.whole_path import QUICK_LIMIT, Quickstart

OVERRIDES = ("--training.steps=2", "--training.batch_size=4", "--training.log_every=1", "--training.save_every=1")
TITLES = 1 + 2 + 4 + 2  # data, trainings, evaluations, exports


def with_fewer_rows(name: str) -> Family:
    """A family whose data is cut to a few rows."""
    family, tasks = FAMILIES[name], dict[str, QuickTask]()
    for key, task in family.tasks.items():
        if task.prepare is easy_vqa.prepare:
            tasks[key] = replace(task, prepare=prepare_few)
        else:
            assert isinstance(task.prepare, partial) and task.prepare.func is scenes.prepare
            tasks[key] = replace(task, prepare=partial(task.prepare, rows=6, held_out=2))
    return replace(family, tasks=tasks, quick=OVERRIDES)


@pytest.fixture(scope="module", autouse=True)
def _few_rows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "ROWS", 2)
        for name in FAMILIES:
            patch.setitem(FAMILIES, name, with_fewer_rows(name))  # pyright: ignore
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished rehearsal."""
    folder = tmp_path_factory.mktemp("quickstart") / "with: blank"
    quickstart(folder, quick=True, limit=16, port=None)
    return folder


def test_it_leaves_runs_scores_exports_and_a_report(out: Path) -> None:
    for name in METHODS:
        folder = name.lower()
        assert (out / folder / "adapter" / "adapter_model.safetensors").is_file()
        assert (out / "export" / folder / "model.safetensors").is_file()
        assert len((out / "eval" / name / "predictions.jsonl").read_text().splitlines()) == 16
    page = (out / "report.html").read_text(encoding="utf-8")
    for text in (
        "LoRA",
        "DoRA",
        BASELINE,
        "a rehearsal on the first 16 questions after a short training (--quick)",
        "2 steps of 4 rows",
        "max-rel",
        "data:image/png",
        "<svg",
    ):
        assert text in page
    assert len([path for path in (out / "steps").iterdir() if path.name != FILES]) == TITLES


def test_again_reuses_everything_and_says_so(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = out / "dora" / "adapter" / "adapter_model.safetensors"
    before = adapter.stat().st_mtime_ns
    quickstart(out, overrides=OVERRIDES, limit=16, port=None)
    assert capsys.readouterr().out.count("reused, took") == TITLES
    assert adapter.stat().st_mtime_ns == before


def test_only_what_a_change_touches_is_made_again(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quickstart(out, overrides=OVERRIDES, limit=12, port=None)
    shown = capsys.readouterr().out
    for title in ("data", "train LoRA", "train DoRA"):
        assert f"{title} reused" in shown
    for title in ("evaluate base", "evaluate DoRA", "export LoRA"):
        assert f"{title} …" in shown


def test_a_half_finished_training_resumes(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "steps" / "train-DoRA.json").unlink()
    (out / "dora" / "complete.json").unlink()
    shutil.rmtree(out / "dora" / "checkpoint-2")
    (out / "dora" / "adapter" / "adapter_model.safetensors").unlink()
    quickstart(out, overrides=OVERRIDES, limit=12, port=None)
    shown = capsys.readouterr().out
    assert "train LoRA reused" in shown and "train DoRA …" in shown
    assert json.loads((out / "dora" / "complete.json").read_text())["resumed"] is True


def test_vlbart_learns_three_tasks_at_once(tmp_path: Path) -> None:
    few = ("--data.feature_cache=null", *OVERRIDES)  # which would run the tower on all pictures
    quickstart(tmp_path / "out", family="vl-bart", overrides=few, limit=4, port=None)
    for name in ("base", *METHODS):
        for task, rows in (("vqa", 4), ("caption", 2), ("nlvr", 4)):
            assert len((tmp_path / "out/eval" / task / name / "predictions.jsonl").read_text().splitlines()) == rows
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for task in FAMILIES["vl-bart"].tasks.values():
        assert f"<h2>{task.heading}: " in page
    assert "Captions of drawn scenes, word for word, exact match × 100: base" in page
    model, processor = load(str(tmp_path / "out/export/dora"))
    assert type(model).__name__ == "VLBartForConditionalGeneration" and processor.default_task == "vqa"
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_a_base_of_the_users_own(tmp_path: Path) -> None:
    """A folder of SmolVLM's architecture, as a hub's model would be."""
    checkpoints.stand_in("num2words")
    checkpoints.make("smolvlm", tmp_path / "own")
    base = str(tmp_path / "own")
    page = quickstart(tmp_path / "out", base=base, overrides=OVERRIDES, limit=2, port=None)
    assert "own on easy-VQA" in page.read_text(encoding="utf-8")
    for run in ("lora", "dora"):
        kept = load_config(tmp_path / "out" / run / "config.yaml")
        assert kept.model.base == base and kept.adapt.vision.method == run
        assert (tmp_path / "out" / "export" / run / "config.json").is_file()
    with pytest.raises(MmdoraError, match="vl-bart has a base of its own"):
        quickstart(tmp_path / "other", base=base, family="vl-bart", port=None)


def test_the_command_knows_every_family() -> None:
    assert set(get_args(get_type_hints(cli.quickstart.quickstart)["family"])) == set(FAMILIES)


def test_a_taken_port_is_said_before_the_work(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MmdoraError, match=r"--port N or --no-demo"):
            quickstart(tmp_path / "new", port=taken.getsockname()[1])
    assert not (tmp_path / "new").exists()


def test_the_short_form_has_a_folder_and_a_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[tuple[Any, int | None]]()

    def stop(run: Quickstart) -> None:
        made.append((run.out, run.limit))
        raise MmdoraError("enough")

    monkeypatch.setattr(Quickstart, "base", stop)
    monkeypatch.chdir(tmp_path)
    mine = Path("mine")
    choices: list[dict[str, Any]] = [{}, {"quick": True}, {"quick": True, "limit": 7}, {"quick": True, "out": mine}]
    for options in choices:
        with pytest.raises(MmdoraError, match="enough"):
            quickstart(port=None, **options)
    usual, short = Path("runs/quickstart"), Path("runs/quickstart-quick")
    assert made == [(usual, None), (short, QUICK_LIMIT), (short, 7), (mine, QUICK_LIMIT)]


def test_the_time_left_is_told_at_the_pace_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = [0.0], io.StringIO()
    monkeypatch.setattr("mmdora.quickstart.steps.time.monotonic", lambda: clock[0])
    steps = Steps(tmp_path, 7, Console(file=told), planned={"a": 100, "b": 100, "c": 40, "d": 60})

    def take(seconds: float) -> None:
        clock[0] += seconds

    steps.run(3, "a", {}, (), lambda: take(250))
    steps.run(3, "b", {}, (), lambda: take(1), fresh=False)  # As a run that was nearly complete before.
    steps.run(3, "c", {}, (), lambda: take(100))
    steps.run(3, "d", {}, (), lambda: take(150))
    found = re.findall(r"about (.*) left", told.getvalue())
    assert found == ["5 min 0 s", "8 min 20 s", "4 min 10 s", "2 min 30 s"]


def test_a_failed_step_leaves_no_marker(tmp_path: Path) -> None:
    steps = Steps(tmp_path, 7, Console(quiet=True))
    with pytest.raises(KeyboardInterrupt):
        steps.run(1, "one", {"a": 1}, (), _interrupted)
    assert steps.run(1, "one", {"a": 1}, (), lambda: 5) == 5
    assert steps.run(1, "one", {"a": 1}, (), _interrupted) == 5, "complete: not done again"
    assert steps.run(1, "one", {"a": 2}, (), lambda: 6) == 6, "made from something else"
    (tmp_path / "left").touch()
    assert steps.run(1, "two", {}, (tmp_path / "left",), lambda: 7) == 7
    (tmp_path / "left").unlink()
    assert steps.run(1, "two", {}, (tmp_path / "left",), lambda: 8) == 8, "what it left is gone"


def _interrupted() -> int:
    raise KeyboardInterrupt


def _verdict(lora: list[bool], dora: list[bool]) -> list[str]:
    def scores(right: list[bool]) -> dict:
        part = {"score": sum(right) / len(right), "n": len(right)}
        return {"overall": part, "by_type": {"yes/no": part}}

    def rows(right: list[bool]) -> list[dict]:
        return [
            {"id": str(i), "images": [f"{i}.png"], "answer": "yes", "prediction": "yes" if r else "no", "score": r}
            for i, r in enumerate(right)
        ]

    table = {"LoRA": scores(lora), "DoRA": scores(dora), "base": scores([False]), BASELINE: scores([True, False])}
    return verdict(table, {"LoRA": rows(lora), "DoRA": rows(dora)})


def test_verdict_is_honest() -> None:
    all_right, some = [True] * 200, [i % 5 > 0 for i in range(200)]
    assert _verdict(some, all_right)[0].startswith("DoRA is better here. DoRA 100.0%, LoRA 80.0%: +20.0 points")
    assert _verdict(all_right, some)[0].startswith("LoRA is better here.")
    assert "cannot be told apart" in _verdict(all_right, all_right)[0]
    assert "cannot be told apart" in _verdict(some, [*some[:-1], not some[-1]])[0]
    assert "LoRA misses it, DoRA reaches it" in _verdict(some, all_right)[2]
    assert "only DoRA on 40" in _verdict(some, all_right)[3]


def test_duration() -> None:
    assert [duration(s) for s in (0.44, 12.4, 242.2, 59.8)] == ["0.4 s", "12 s", "4 min 2 s", "1 min 0 s"]
