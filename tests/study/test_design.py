"""The designs: the committed ones hold together, and a mistake in one is a line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_designs import written

from mmdora.cli import main
from mmdora.errors import MmdoraError
from mmdora.study.cells import groups, planned, wanted
from mmdora.study.design import read_study
from mmdora.study.results import Results
from mmdora.study.tasks import TASKS

DESIGNS = sorted((Path(__file__).parents[2] / "configs/study").glob("*.yaml"))


@pytest.mark.parametrize("path", DESIGNS, ids=lambda path: path.stem)
def test_a_committed_design_names_its_command_and_known_tasks(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith(f"# mmdora study configs/study/{path.name}\n")
    study = read_study(path)
    assert set(study.tasks) <= set(TASKS)
    assert all(group.cell(study.rates.values[0], 0).settings["adapt"] for group in groups(study, TASKS))


def test_every_arm_gets_the_same_rates_and_the_first_seed_only(tmp_path: Path) -> None:
    study = read_study(written(tmp_path))
    cells = wanted(study, TASKS, Results())
    budget = {arm: {(cell.rate, cell.seed) for cell in cells if cell.arm == arm} for arm in study.all_arms}
    assert budget["LoRA r4"] == budget["DoRA r4"] == {(0.001, 0), (0.0032, 0), (0.01, 0)}
    assert planned(study) == 2 * (3 + 1)


def test_cells_of_two_studies_are_one_if_their_settings_are(tmp_path: Path) -> None:
    arms = {"mine": {"all": {"method": "dora", "rank": 4}}, "other": {"language": {"method": "dora", "rank": 4}}}
    one = {cell.key for cell in wanted(read_study(written(tmp_path)), TASKS, Results()) if cell.arm == "DoRA r4"}
    both = read_study(written(tmp_path, arms=arms, grid=None, compare=[["mine", "other"]]))
    two = {arm: {cell.key for cell in wanted(both, TASKS, Results()) if cell.arm == arm} for arm in arms}
    assert two["mine"] == one
    assert not two["other"] & one


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compare": [["LoRA r4", "DoRA r8"]]}, "no arm 'DoRA r8'; there are LoRA r4, DoRA r4"),
        ({"tasks": ["name"]}, "no task 'name'; there are easy-vqa-other, names"),
        ({"tasks": ["names", "names"]}, "tasks: one stands twice"),
        ({"rates": {"low": 1e-2, "high": 1e-3, "count": 3}}, "are no grid"),
        ({"shared_rate": 5e-3}, "shared_rate 0.005 is none of the grid"),
        ({"search_seeds": 3}, "search_seeds 3 are more than the 2 seeds"),
        ({"sedes": [0]}, "sedes: unknown key; did you mean 'seeds'?"),
        ({"grid": {"methods": ["dorra"]}}, "grid.methods"),
        ({"grid": {"methods": ["lora", "dora"], "places": ["visoin"]}}, "visoin"),
    ],
)
def test_a_mistake_in_a_design_is_one_line(
    changes: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", str(written(tmp_path, **changes)), "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0], lines


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([], "name at least one design"),
        (["nowhere.yaml"], "nowhere.yaml: no such study"),
        (["DESIGN", "--only-report"], "--only-report needs --report"),
        (["DESIGN", "--again", "2"], "--again needs --results"),
        (["DESIGN", "--data", "x"], "--data goes with"),
        (["--data", "nowhere"], "nowhere: no such folder of records"),
        (["--data", "x", "--budget", "soon"], "--budget soon: give hours or minutes"),
        (["--data", "x", "--methods", "lora"], "name two or more different methods"),
        (["--data", "x", "--methods", "lora,dorra"], "no method 'dorra'"),
        (["--data", "x", "--base", "./nowhere"], "there is no folder ./nowhere"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(
    tokens: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [str(written(tmp_path)) if token == "DESIGN" else token for token in tokens]
    assert main(["study", *named, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0], lines


def test_a_design_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n", encoding="utf-8")
    with pytest.raises(MmdoraError, match="expected the keys of a study, found list"):
        read_study(tmp_path / "list.yaml")
