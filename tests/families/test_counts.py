"""The tokens that are counted from the sizes of pictures are those of the real batch, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import checkpoints, records

from mmdora.errors import MmdoraError
from mmdora.families import family_of
from mmdora.families.expansion import Expansions
from mmdora.records.reader import read_records

RULES = {"qwen2_5_vl": True, "llava": True, "internvl": True, "gemma3": False, "llava_onevision": False}
"""Families whose processor has a rule that gives what it writes, and families where the rule gives something else."""


def processor_of(name: str) -> Any:
    for package in checkpoints.RECIPES[name].needs:
        checkpoints.stand_in(package)
    return checkpoints.RECIPES[name].make_processor()


@pytest.mark.parametrize("name", sorted(checkpoints.RECIPES.keys() - checkpoints.TOO_OLD))
def test_counted_tokens_are_those_of_the_batch(name: str, tmp_path: Path) -> None:
    recipe = checkpoints.RECIPES[name]
    train, _ = records.write(tmp_path, several=recipe.several, without=recipe.without, turns=recipe.turns)
    family, rows = family_of(processor_of(name)), list(read_records(train))
    assert family.count_tokens(rows).tolist() == [family.counted(family.batch([row])) for row in rows]


@pytest.mark.parametrize("name", sorted(checkpoints.TOO_OLD))
def test_a_family_whose_processor_is_too_old_is_refused(name: str, tmp_path: Path) -> None:
    train, _ = records.write(tmp_path)
    with pytest.raises(MmdoraError, match="pip install -U"):
        family_of(processor_of(name)).batch(list(read_records(train)))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_used_where_it_is_right(name: str) -> None:
    assert family_of(processor_of(name)).expansions.has_rule is RULES[name]


def test_a_size_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    family, asked = family_of(processor_of("gemma3")), []
    assert not family.expansions.has_rule
    real = Expansions._asked
    monkeypatch.setattr(Expansions, "_asked", lambda self, sizes: asked.append(sizes) or real(self, sizes))
    assert family.image_tokens([(50, 60), (50, 60), (60, 50)]) == [10, 10, 10]
    assert asked == [((50, 60),), ((60, 50),)]
