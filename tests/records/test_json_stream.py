"""The streaming reader against `json.loads`, with the text cut at every kind of place."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from mmdora.errors import MmdoraError
from mmdora.records import json_stream
from mmdora.records.json_stream import Scanner


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[i : i + size] for i in range(0, len(text), size))


def scanner(text: str, size: int = 3) -> Scanner:
    return Scanner(pieces(text, size), "f.json")


def anything(random: Random, depth: int = 3) -> Any:
    """A JSON value with what cuts badly: escapes, surrogate pairs, long numbers, literals, empty containers."""
    kind = random.randrange(8 if depth else 5)
    if kind == 0:
        return random.choice([0, -1, 12345678901234567890, 1.5e-7, -0.25, True, False, None])
    if kind < 5:
        return "".join(random.choice('aß"\\\n\t/é漢😀\u2028]},:[{') for _ in range(random.randrange(12)))
    if kind < 7:
        return [anything(random, depth - 1) for _ in range(random.randrange(4))]
    return {f'k{i}"\\': anything(random, depth - 1) for i in range(random.randrange(4))}


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", 1)  # so that every value meets the end of the buffer


@pytest.mark.parametrize("seed", range(25))
def test_equals_json(seed: int):
    random = Random(seed)
    values = [anything(random) for _ in range(random.randrange(6))]
    style = {"ensure_ascii": random.random() < 0.5, "indent": random.choice([None, 0, 2])}
    size = random.choice([1, 2, 3, 7, 50])
    text = json.dumps(values, **style)
    assert [found.value for found in scanner(text, size).elements()] == json.loads(text)
    keyed = json.dumps({f"q{i}": value for i, value in enumerate(values)}, **style)
    assert {found.key: found.value for found in scanner(keyed, size).items()} == json.loads(keyed)
    nested = json.dumps({"info": {"a": [1]}, "other": values, "rows": values, "end": 3}, **style)
    assert [found.value for found in scanner(nested, size).elements("rows")] == json.loads(nested)["rows"]
    assert scanner(nested, size).header() == ({"info": {"a": [1]}}, "other")


def test_lines_are_those_of_the_file():
    text = '\n[\n {"a":\n 1},\n\n {"b": 2}, 3\n,\n"x\\ny"]\n'
    assert [(found.value, found.line) for found in scanner(text).elements()] == [
        ({"a": 1}, 3),
        ({"b": 2}, 6),
        (3, 6),
        ("x\ny", 8),
    ]
    assert [(found.key, found.line) for found in scanner('{"a": 1,\n"b":\n2}').items()] == [("a", 1), ("b", 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n{"a": 2', r"f\.json:2: broken JSON .*cut short"),
        ('[{"a": 1},\n{"a": "te', r"f\.json:2: broken JSON .*cut short"),
        ('[{"a": 1},\n', r"f\.json:2: broken JSON"),
        ('[{"a": 1}\n{"a": 2}]', r"f\.json:2: broken JSON \(expected ','"),
        ("[1, 2]\n[3]", r"f\.json:2: broken JSON \(text after the end\)"),
        ("[1,]", "broken JSON"),
        ('[1,\n{"a": tru e}]', r"f\.json:2: broken JSON"),
        ('{"a": 1}', "expected a JSON list"),
        ("", "expected a JSON list"),
        ("[" * 100_000, "cannot be read"),
        (f"[{'9' * 5000}]", "cannot be read"),
    ],
)
def test_broken_json_is_named_by_its_line(text: str, message: str):
    with pytest.raises(MmdoraError, match=message):
        list(scanner(text, 1000).elements())


def test_a_broken_row_is_not_searched_for_to_the_end():
    """An error in the middle of the buffer is one at once: a file of gigabytes is not read to make sure."""
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        yield '[{"a": 1}, {"a" 2}'
        while True:
            read += 1
            yield ', {"a": 3}' * 1000

    with pytest.raises(MmdoraError, match="Expecting ':'"):
        list(Scanner(endless(), "f.json").elements())
    assert read < 5


def test_structure_that_is_not_there():
    with pytest.raises(MmdoraError, match="no list 'rows'"):
        list(scanner('{"a": [1], "rows": 3}').elements("rows"))
    assert list(scanner('{"a": [1]}').elements("rows", optional=True)) == []
    with pytest.raises(MmdoraError, match="expected a JSON object"):
        list(scanner("[1]").items())
    with pytest.raises(MmdoraError, match="expected a key"):
        list(scanner('{"a": 1,}').items())
