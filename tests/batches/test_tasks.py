"""Several tasks: one per micro-batch, every row once; the soft answers of VQA."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmdora.batches.fit import Rows
from mmdora.batches.order import Batches
from mmdora.batches.sampler import NO_ROW, GroupedSampler
from mmdora.batches.tasks import TaskRows, soft_answer, soft_scores
from mmdora.errors import MmdoraError
from mmdora.prepare.record import asked
from mmdora.records.images import FileRef
from mmdora.records.reader import read_records, write_records

GIVEN = ["red"] * 3 + ["dark red"] + ["crimson"] * 6
SIZES = {"vqa": 37, "caption": 20, "nlvr": 9}


def rows_of(folder: Path, name: str, count: int, **meta: object) -> Rows:
    folder = folder / name
    write_records(
        folder / "rows.jsonl", [asked(f"{name}-{i}", ["0.png"], "what?", f"{name} {i}", **meta) for i in range(count)]
    )
    index = np.arange(count, dtype=np.int32)
    lengths = (7 * index) % 11
    return Rows(read_records(folder / "rows.jsonl"), index, np.zeros_like(index), lengths, np.zeros(count, bool))


@pytest.fixture
def tasks(tmp_path: Path) -> TaskRows:
    parts = {name: rows_of(tmp_path, name, size, answers=GIVEN) for name, size in SIZES.items()}
    return TaskRows(parts, ["vqa"], seed=3)


def test_soft_scores_are_vl_t5s():
    found = soft_scores(["a"] * 2 + ["b"] + ["c"] * 3 + ["d"] * 4)
    assert found == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.9, "d": 1.0})
    assert soft_scores(GIVEN) == pytest.approx({"red": 0.9, "dark red": 0.3, "crimson": 1.0})


def test_answers_are_drawn_in_proportion_to_their_scores():
    rng = random.Random(0)
    drawn = [soft_answer(GIVEN, rng) for _ in range(6000)]
    scores = soft_scores(GIVEN)
    for answer, count in Counter(answer for answer, _ in drawn).items():
        assert count / 6000 == pytest.approx(scores[answer] / sum(scores.values()), abs=0.02)
    assert all(weight == scores[answer] for answer, weight in drawn)


def test_a_row_knows_its_task_and_its_root(tasks: TaskRows, tmp_path: Path):
    assert len(tasks) == sum(SIZES.values())
    last = tasks[len(tasks) - 1]
    assert (last["id"], last.get("task"), last["images"]) == ("nlvr-8", "nlvr", [FileRef("0.png", tmp_path / "nlvr")])
    assert tasks[37]["id"] == "caption-0" and "weight" not in tasks[37]
    assert tasks[~40].get("masked") is True and tasks[~40]["id"] == tasks[40]["id"]


def test_soft_answers_follow_seed_epoch_and_row(tasks: TaskRows):
    def drawn() -> list[tuple[str, float]]:
        found = [tasks[i] for i in range(SIZES["vqa"])]
        return [(row["messages"][-1]["content"][0]["text"], row.get("weight", 1.0)) for row in found]

    first = drawn()
    assert first == drawn() and len(set(first)) == 3
    assert all(weight == soft_scores(GIVEN)[answer] for answer, weight in first)
    tasks.set_epoch(1)
    assert drawn() != first
    tasks.set_epoch(0)
    assert drawn() == first


def test_soft_answers_need_answers(tmp_path: Path):
    with pytest.raises(MmdoraError, match=r"data\.tasks\.vqa\.soft_answers: .* no meta\.answers"):
        TaskRows({"vqa": rows_of(tmp_path, "vqa", 2)}, ["vqa"])


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("processes", [1, 3])
def test_a_micro_batch_holds_one_task_and_every_row_comes_once(tasks: TaskRows, grouped: bool, processes: int):
    lengths = tasks.lengths if grouped else None
    sampler = GroupedSampler(len(tasks), 4, 5, lengths, tasks.has_image, tasks.tasks)
    batches = Batches(sampler, 4, processes, tasks.has_image, spare=0)
    found = list(batches)
    assert len(found) == len(batches)
    seen = [[row for row in batch if row >= 0] for batch in found]
    assert sorted(row for batch in seen for row in batch) == list(range(len(tasks)))
    assert all(len({int(tasks.tasks[row]) for row in batch}) <= 1 for batch in seen)
    assert all(0 < len(batch) <= 4 for batch in found)
    assert [batches.of_round(n, p) for n in range(batches.rounds) for p in range(processes)] == found
    sampler.set_epoch(1)
    assert list(batches) != found
    order = sampler.order()
    assert len(order) == len(sampler) and (order == NO_ROW).sum() == 3 + 0 + 3  # 37 and 9 rows fill no last batch


def test_tasks_are_mixed_in_proportion():
    sizes = [3000, 1000]
    tasks = np.repeat([0, 1], sizes)
    sampler = GroupedSampler(4000, 10, 0, None, np.zeros(4000, bool), tasks)
    kinds = tasks[sampler.order().reshape(-1, 10)[:, 0]]
    for part in np.split(kinds, 4):
        assert part.mean() == pytest.approx(0.25, abs=0.12)
