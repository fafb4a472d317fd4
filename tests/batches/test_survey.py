"""The survey of a file of records: its figures against rows that are really processed, and what a user sees of it."""

import numpy as np
import pytest
from rich.console import Console
from tiny_run import first_turns
from transformers import AutoProcessor

from mmdora.batches.survey import drawing, filling, survey
from mmdora.cli import main
from mmdora.config import RunConfig, validate
from mmdora.families import family_of
from mmdora.records.reader import read_records


@pytest.fixture(scope="module")
def records(scene_records):
    return first_turns(scene_records, 18)


def config(**data):
    return validate(RunConfig, {"data": data, "training": {"batch_size": 4}}, where=lambda key: "test")


@pytest.fixture
def processor(tiny_llava):
    return AutoProcessor.from_pretrained(tiny_llava)


def test_figures_are_those_of_processed_rows(records, processor):
    opened = read_records(records)
    found = survey(opened, family_of(processor), config())
    collate = family_of(processor).batch
    rows = [collate([record]) for record in opened]
    assert found.lengths.tolist() == [row["input_ids"].shape[1] for row in rows]
    images = [int((row["input_ids"] == processor.image_token_id).sum()) for row in rows]
    assert found.image_tokens.tolist() == images and 0 in images
    assert set(found.padding) == {"in any order", "grouped by length"}


def test_filling_is_that_of_padded_batches():
    lengths = np.array([3, 5, 2, 9, 4])
    assert filling(lengths, 2) == pytest.approx(1 - 23 / (5 + 5 + 9 + 9 + 4))
    assert filling(lengths, 1) == 0


def test_grouping_and_packing_fill_up_less(records, processor):
    shares = survey(read_records(records), family_of(processor), config(max_length=360)).padding
    loose, grouped, packed = shares.values()
    assert grouped < loose and packed < loose


def test_rows_over_the_limit_are_named(records, processor):
    opened = read_records(records)
    lengths = survey(opened, family_of(processor), config()).lengths
    limit = int(np.sort(lengths)[-3]) - 1
    found = survey(opened, family_of(processor), config(max_length=limit))
    over = [record["id"] for record, length in zip(opened, lengths, strict=True) if length > limit]
    assert len(over) >= 3 and list(found.over) == over[:5]
    console = Console(width=100, record=True)
    console.print(drawing(found))
    assert f"over data.max_length {limit}: {len(over)} rows: {over[0]}, " in console.export_text()


def test_the_histogram_counts_every_row(records, capsys):
    assert main(["inspect", "tiny-llava", "--data", str(records)]) == 0
    told = capsys.readouterr().out
    bars = [line for line in told.splitlines() if "…" in line]
    assert sum(int(line.split()[3]) for line in bars) == 18 and "█" in told
    assert "18 rows, 15 with images" in " ".join(told.split())  # however wide the terminal is


def test_a_file_that_is_not_there_is_one_line(capsys):
    assert main(["inspect", "tiny-llava", "--data", "none.jsonl"]) == 2
    assert "none.jsonl" in capsys.readouterr().err
