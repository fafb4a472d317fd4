"""Evaluation by generation: batches, files, kill and resume, several processes."""

import copy
import json
import os
import shutil
import signal
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from few_easy_vqa import prepare_few
from tiny_run import contents, exit_code, forked, until

from mmdora.errors import MmdoraError
from mmdora.evaluate import asking, run
from mmdora.evaluate.comparison import Compared
from mmdora.evaluate.resume import JOURNAL, Journal, read_predictions
from mmdora.evaluate.scoring.scores import Scores
from mmdora.outputs.written import FILES
from mmdora.records.images import FileRef
from mmdora.records.reader import read_records
from mmdora.records.row import changed


@pytest.fixture(scope="module")
def easy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("easy")
    prepare_few(folder)
    return folder


@pytest.fixture
def records(easy):
    return list(islice(read_records(easy / "test.jsonl"), 30))


def answering(monkeypatch, answers: list[str]) -> None:
    """Let the model give these answers, one after the other."""
    left = iter(answers)
    monkeypatch.setattr(run, "generate", lambda model, processor, prompts, **_: [next(left) for _ in prompts])


def test_batches_change_nothing_and_rows_keep_their_order(
    loaded: tuple[Any, Any], easy, records, tmp_path, monkeypatch
):
    monkeypatch.setattr(asking, "WINDOW", 2)
    batched = run.evaluate(*loaded, records, batch_size=7, max_new_tokens=4, out=tmp_path / "a")
    alone = run.evaluate(*loaded, records, batch_size=1, max_new_tokens=4, out=tmp_path / "b")
    rows = read_predictions(tmp_path / "a")
    for row in (*rows, *(singly := read_predictions(tmp_path / "b"))):
        del row["sha256"]  # It has the batch size in it.
    assert rows == singly and batched.scores == alone.scores
    assert [row["id"] for row in rows] == [record["id"] for record in records]
    assert len({row["prediction"] for row in rows}) > 1


def test_files_hold_what_was_scored(loaded: tuple[Any, Any], easy, records, tmp_path, monkeypatch):
    answering(monkeypatch, ["Yes." if i % 2 else "teal" for i in range(len(records))])
    found = run.evaluate(*loaded, records, out=tmp_path / "new" / "out")
    rows = read_predictions(tmp_path / "new" / "out")
    assert set(rows[0]) == {"id", "question", "answer", "prediction", "images", "type", "score", "sha256"}
    for row, record in zip(rows, records, strict=True):
        assert row["score"] == (row["answer"] == row["prediction"].lower().rstrip("."))
        assert row["type"] == ("yes/no" if row["answer"] in ("yes", "no") else "other")
        assert row["images"] == [image.name for image in record["images"]]
    metrics = json.loads((tmp_path / "new" / "out" / "metrics.json").read_text())
    assert Scores.from_dict(metrics) == found.scores
    right = sum(row["score"] for row in rows)
    assert metrics["overall"]["score"] == right / len(rows) > 0
    assert metrics["questions_per_s"] > 0 and metrics["task"] == "exact"
    assert (tmp_path / "new" / "out" / "errors.html").stat().st_size > 0


def test_the_table_says_which_answer_of_a_conversation_was_scored(
    loaded: tuple[Any, Any], records, tmp_path, monkeypatch
):
    """Two conversations with one more question in front, in each of which only the last answer is asked for."""
    alone, talk = records[:3], []
    for record in alone[:2]:
        more = [{**message, "content": message["content"][-1:]} for message in record["messages"]]
        talk.append(changed(record, messages=[*record["messages"], *more]))
    answering(monkeypatch, ["yes"] * 6)
    told = run.evaluate(*loaded, [*talk, alone[2]], out=tmp_path / "out")
    assert len(told.rows) == 3 and told.earlier == 2
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["earlier_answers"] == 2
    said = "scored: the last answer of each conversation; 2 earlier ones are given in the prompts"
    assert said in str(Compared({"base": told}, "exact"))
    assert "scored: the last" not in str(Compared({"base": run.evaluate(*loaded, alone)}, "exact"))


def test_each_image_is_opened_once(loaded: tuple[Any, Any], easy, records, monkeypatch):
    opened, real = [], asking.open_image
    monkeypatch.setattr(asking, "open_image", lambda image: opened.append(image) or real(image))
    answering(monkeypatch, [""] * len(records))
    run.evaluate(*loaded, records, batch_size=4)
    assert len(opened) == len({name for record in records for name in record["images"]}) < len(records)


def test_a_missing_image_is_named_with_its_record(loaded: tuple[Any, Any], easy, records):
    broken = [*records[:3], changed(records[3], id="row-x", images=[FileRef("images/none.png", easy)])]
    with pytest.raises(MmdoraError, match=r"record row-x: .*none\.png"):
        run.evaluate(*loaded, broken)


def test_no_records(loaded: tuple[Any, Any], easy):
    with pytest.raises(MmdoraError, match="nothing to evaluate"):
        run.evaluate(*loaded, [])


def test_answers_to_some_of_the_records(loaded: tuple[Any, Any], easy, records):
    *before, answer = records[1]["messages"]
    unknown = changed(records[1], messages=[*before, answer | {"content": [{"type": "text", "text": " "}]}])
    with pytest.raises(MmdoraError, match="1 of 3 records have no answer"):
        run.evaluate(*loaded, [records[0], unknown, records[2]])


def test_progress_shows_the_time_left(loaded: tuple[Any, Any], easy, records, capsys):
    run.evaluate(*loaded, records[:4], batch_size=2, max_new_tokens=2, progress=True)
    shown = capsys.readouterr().err
    assert "4/4" in shown and "q/s" in shown


def test_batches_are_of_like_length_and_hold_every_row_once():
    lengths = [i * 37 % 250 for i in range(100)]
    batches = asking.plan(lengths, list(range(100)), 3)
    assert sorted(row for batch in batches for row in batch) == list(range(100))
    window = [lengths[row] // asking.ALIKE for batch in batches[: asking.WINDOW] for row in batch]
    assert window == sorted(window, reverse=True) and {row for b in batches[: asking.WINDOW] for row in b} == set(
        range(48)
    )


def test_questions_about_one_picture_stand_together_among_those_of_like_length():
    lengths = [200 if i % 2 else 100 for i in range(48)]
    pictures = [f"{i % 8}.png" for i in range(48)]  # six questions each, all of one length
    batches = asking.plan(lengths, pictures, 3)
    assert [len({pictures[row] for row in batch}) for batch in batches] == [1] * 16
    assert [len({lengths[row] for row in batch}) for batch in batches] == [1] * 16


def test_pictures_go_through_the_tower_once_a_batch(loaded: tuple[Any, Any], easy, records, monkeypatch):
    model, seen = loaded[0], []
    monkeypatch.setattr(asking, "ALIKE", 10_000)
    real = model.model.vision_tower.forward
    monkeypatch.setattr(
        model.model.vision_tower, "forward", lambda pixels, **rest: seen.append(len(pixels)) or real(pixels, **rest)
    )
    run.evaluate(*loaded, records, batch_size=30, max_new_tokens=2)
    assert seen == [len({record["images"][0] for record in records})] and seen[0] < 15


# --- resuming


def test_a_complete_evaluation_is_reused_until_something_changes(
    loaded: tuple[Any, Any], easy, records, tmp_path, monkeypatch
):
    options = {"batch_size": 8, "max_new_tokens": 3, "out": tmp_path}
    first = run.evaluate(*loaded, records, **options)
    written = read_predictions(tmp_path)
    monkeypatch.setattr(run, "generate", lambda *_, **__: pytest.fail("asked again"))
    again = run.evaluate(*loaded, records, **options)
    assert again.reused == len(records) and (again.rows, again.scores) == (first.rows, first.scores)
    assert read_predictions(tmp_path) == written
    asked: list[int] = []
    monkeypatch.setattr(run, "generate", lambda m, p, prompts, **_: asked.append(1) or [""] * len(prompts))
    parameter = next(loaded[0].parameters())
    for change in ("length", "question", "weights"):
        asked.clear()
        more, rows = dict(options), records
        if change == "length":
            more["max_new_tokens"] = 2
        elif change == "question":
            rows = copy.deepcopy(records)
            rows[5]["messages"][0]["content"][1]["text"] += "?"
        else:
            parameter.data.view(-1)[0] += 1e-3
        run.evaluate(*loaded, rows, **more)
        assert asked, f"another {change}, and yet the old answers were taken"
    parameter.data.view(-1)[0] -= 1e-3


def test_a_torn_line_and_other_keys_count_for_nothing(tmp_path):
    journal = Journal(tmp_path, "key", 0)
    journal.begin()
    journal.add(0, ["a", "b\n"])
    journal.add(1, ["é"])
    journal.close()
    file = tmp_path / JOURNAL.format(0)
    with file.open("ab") as torn:
        torn.write(b'{"batch": 2, "answers": ["x"')
    (tmp_path / JOURNAL.format(1)).write_text('{"key": "other"}\n{"batch": 5, "answers": ["z"]}\n')
    assert Journal(tmp_path, "key", 1).kept() == {0: ["a", "b\n"], 1: ["é"]}
    again = Journal(tmp_path, "key", 0)
    again.begin()
    again.add(2, ["new"])
    again.close()
    assert again.kept() == {0: ["a", "b\n"], 1: ["é"], 2: ["new"]}
    assert Journal(tmp_path, "another", 0).kept() == {}
    again.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["swapped", "edited", "lost", "broken"])
def test_answers_that_are_not_those_of_their_questions_are_refused(
    loaded: tuple[Any, Any], easy, records, tmp_path, monkeypatch, change
):
    answering(monkeypatch, ["yes" if i % 2 else "no" for i in range(len(records))])
    run.evaluate(*loaded, records, out=tmp_path)
    path = tmp_path / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if change == "swapped":
        lines[3], lines[4] = lines[4], lines[3]
    elif change == "edited":
        lines[3] = json.dumps(json.loads(lines[3]) | {"prediction": "blue"}) + "\n"
    elif change == "lost":
        lines = lines[:3]
    else:
        lines[3] = lines[3][:20] + "\n"
    path.write_text("".join(lines))
    monkeypatch.setattr(run, "generate", lambda *_, **__: pytest.fail("asked again"))
    with pytest.raises(MmdoraError, match=r"predictions\.jsonl:4: is not the answer that was given there"):
        run.evaluate(*loaded, records, out=tmp_path)
    assert path.read_text() == "".join(lines)


def test_a_line_of_another_evaluation_does_not_fit(loaded: tuple[Any, Any], easy, records, tmp_path, monkeypatch):
    """The same id and place, but another question list, and so another key."""
    answering(monkeypatch, ["yes"] * 2 * len(records))
    run.evaluate(*loaded, records, out=tmp_path / "a")
    run.evaluate(*loaded, records, out=tmp_path / "b", max_new_tokens=2)
    one, other = ((tmp_path / name / "predictions.jsonl").read_text().splitlines(keepends=True) for name in "ab")
    (tmp_path / "a" / "predictions.jsonl").write_text("".join([other[0], *one[1:]]))
    with pytest.raises(MmdoraError, match=r"predictions\.jsonl:1: is not the answer"):
        run.evaluate(*loaded, records, out=tmp_path / "a")


def test_numbers_that_were_edited_are_refused(loaded: tuple[Any, Any], easy, records, tmp_path, monkeypatch):
    answering(monkeypatch, ["yes"] * len(records))
    run.evaluate(*loaded, records, out=tmp_path)
    path = tmp_path / "metrics.json"
    path.write_text(path.read_text().replace('"task": "exact"', '"task": "other"'))
    with pytest.raises(MmdoraError, match=r"metrics\.json: was edited"):
        run.evaluate(*loaded, records, out=tmp_path)


def test_swapped_answers_of_a_killed_run_are_asked_again(tmp_path, capsys):
    journal = Journal(tmp_path, "key", 0)
    journal.begin()
    for batch in range(3):
        journal.add(batch, [f"answer {batch}"])
    journal.close()
    path = tmp_path / JOURNAL.format(0)
    swapped = path.read_text().replace("answer 1", "answer X").replace("answer 2", "answer 1")
    path.write_text(swapped.replace("answer X", "answer 2"))
    assert Journal(tmp_path, "key", 0).kept() == {0: ["answer 0"]}
    told = capsys.readouterr().err
    assert [f"partial-0.jsonl:{line}: is not what was answered; asked again" in told for line in (3, 4)] == [True] * 2
    again = Journal(tmp_path, "key", 0)
    again.begin()
    again.close()
    assert len(path.read_text().splitlines()) == 2


def test_another_picture_of_the_same_name_is_asked_about_again(
    loaded: tuple[Any, Any], easy, records, tmp_path, monkeypatch
):
    root = tmp_path / "root"
    shutil.copytree(easy / "images", root / "images")
    here = [changed(row, images=[FileRef(image.name, root) for image in row["images"]]) for row in records]
    first, asked = root / records[0]["images"][0].name, list[int]()
    monkeypatch.setattr(run, "generate", lambda m, p, prompts, **_: asked.append(1) or ["yes"] * len(prompts))
    run.evaluate(*loaded, here, out=tmp_path / "out")
    asked.clear()
    other = next(path for path in sorted((easy / "images/train").iterdir()) if path.read_bytes() != first.read_bytes())
    shutil.copyfile(other, first)
    run.evaluate(*loaded, here, out=tmp_path / "out")
    assert asked


FOREIGN = ("predictions.jsonl", "metrics.json", "errors.html", "partial-0.jsonl")


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_others_is_not_overwritten(loaded: tuple[Any, Any], easy, records, tmp_path, monkeypatch, name):
    monkeypatch.setattr(run, "generate", lambda *_, **__: pytest.fail("asked before it was refused"))
    (tmp_path / name).write_text('{"mine": 1}\n')
    with pytest.raises(MmdoraError, match=rf"{name}: is there, and"):
        run.evaluate(*loaded, records, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == '{"mine": 1}\n'


def test_a_second_evaluation_in_one_folder_is_refused(loaded: tuple[Any, Any], easy, records, tmp_path, monkeypatch):
    """The first one is another process, in the middle of its answers."""
    child = forked(command(easy, tmp_path), tmp_path / "errors", lambda: setattr(run, "generate", asleep))
    folder = tmp_path / TASK / "m"
    until((folder / JOURNAL.format(0)).exists, tmp_path / "errors")
    with pytest.raises(MmdoraError, match=rf"m: another run is writing there \(process {child} on "):
        run.evaluate(*loaded, records, out=folder)
    os.kill(child, signal.SIGTERM)
    assert exit_code(child) == 143
    told = (tmp_path / "errors").read_text().splitlines()[-1]
    assert told == f"SIGTERM: stopped; 0 of 96 answers are kept in {folder}; the same command goes on from there"


def asleep(*_: Any, **__: Any) -> list[str]:
    time.sleep(60)
    return []


TASK = "easy-vqa-first-96"


def command(easy: Path, out: Path, *more: str) -> list[str]:
    return ["eval", "m=tiny-llava", "--data", str(easy), "--limit", "96", "--batch-size", "4", "--out", str(out), *more]


def told_alike(ours: Path, theirs: Path) -> bool:
    """Whether two evaluations left the same predictions, scores and pages."""
    one, other = contents(ours), contents(theirs)
    timed = [json.loads(files.pop(f"{TASK}/m/metrics.json")) for files in (one, other)]
    for files, metrics in zip((one, other), timed, strict=True):
        del files[f"{TASK}/m/{FILES}"]  # It holds the checksum of metrics.json, which has the times.
        for name in ("reused", "seconds", "questions_per_s", "sha256"):
            metrics.pop(name, None)
    return one == other and timed[0] == timed[1]


@pytest.fixture(scope="module")
def undisturbed(easy, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert exit_code(forked(command(easy, out), out.parent / "errors")) == 0, (out.parent / "errors").read_text()
    return out


def test_a_killed_evaluation_goes_on_and_ends_like_an_undisturbed_one(easy, undisturbed, tmp_path):
    out, told = tmp_path / "out", tmp_path / "errors"
    child = forked(command(easy, out), told)
    journal = out / TASK / "m" / JOURNAL.format(0)
    until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 6, told)
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL
    assert not (out / TASK / "m" / "metrics.json").exists(), "it was killed too late to test anything"
    assert exit_code(forked(command(easy, out), told)) == 0, told.read_text()
    metrics = json.loads((out / TASK / "m" / "metrics.json").read_text())
    assert 20 <= metrics["reused"] < 96 and "answers of an earlier run" in told.read_text()
    assert told_alike(out, undisturbed)


def test_two_processes_answer_what_one_does(easy, undisturbed, tmp_path):
    """gloo; each has opened its share, and the first one has written."""
    out = tmp_path / "out"

    def joins(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        PartialState._reset_state()
        answered = run.generate

        def counted(*args: Any, **options: Any) -> list[str]:
            with (tmp_path / f"asked-{rank}").open("a") as file:
                file.write("batch\n")
            return answered(*args, **options)

        run.generate = counted

    port = str(20000 + os.getpid() % 20000)
    children = [forked(command(easy, out), tmp_path / f"errors-{rank}", lambda r=rank: joins(r)) for rank in (0, 1)]
    codes = [exit_code(child) for child in children]
    assert codes == [0, 0], "".join((tmp_path / f"errors-{rank}").read_text() for rank in (0, 1))
    assert [len((tmp_path / f"asked-{rank}").read_text().splitlines()) for rank in (0, 1)] == [12, 12]
    assert told_alike(out, undisturbed)
