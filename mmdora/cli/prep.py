"""`mmdora prep`: a command for each dataset of `mmdora.data_prep.table`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from mmdora.cli.app import Flag, Overrides, app
from mmdora.errors import MmdoraError

if TYPE_CHECKING:
    from mmdora.prepare.dataset import Dataset

HELP = "Turn a dataset, public or your own, into records: mmdora prep NAME --in FILES --images DIR --out DIR."
Out = Annotated[Path, Parameter(help="Folder for a file per split, dataset_card.json and report.html.")]


@app.command(name="prep", sort_key=7, help=HELP, help_flags=())
def prep(*tokens: Overrides) -> Any:
    """Hand everything behind `prep`, `--help` included, to an app of its own.

    The datasets are imported only here, so that `mmdora --help` does not wait for them.
    """
    return datasets_app()(("prep", *tokens), exit_on_error=False, print_error=False, result_action="return_value")


def datasets_app() -> App:
    """An app with the commands `mmdora prep NAME`, one per dataset, and `mmdora prep --list`."""
    from mmdora.data_prep.table import DATASETS

    root = App(name="mmdora", default_parameter=app.default_parameter, suppress_keyboard_interrupt=False)
    commands = App(name="prep", help=HELP)
    root.command(commands)
    for dataset in DATASETS.values():
        text = f"{dataset.summary}\n\n{dataset.details}\n\nExample: `{dataset.command} {dataset.example}`"
        commands.command(dataset.make or _conversion(dataset), name=dataset.name, help=text)
    commands.default(prep_list)
    return root


def _conversion(dataset: Dataset) -> Callable[..., dict[str, int]]:
    """The function behind the command of a dataset that reads official files; its arguments are the command's."""

    def convert(out: Out, *, inputs: Any) -> dict[str, int]:
        from mmdora.prepare.run import prepare

        return prepare(dataset, out, inputs)

    assert dataset.files is not None
    convert.__annotations__ = {"out": Out, "inputs": dataset.files.inputs, "return": dict[str, int]}
    return convert


def prep_list(*unknown: Overrides, list: Annotated[bool, Flag] = False) -> None:
    """Turn a dataset, public or your own, into records: `mmdora prep NAME --in FILES --images DIR --out DIR`.

    `mmdora prep folder` takes pictures and a table of your own.

    Example: `mmdora prep llava --in llava_v1_5_mix665k.json --images DIR --out data/llava`

    Parameters
    ----------
    list
        List the datasets with licence and source.
    """
    from mmdora.data_prep.table import DATASETS

    if unknown:
        close = difflib.get_close_matches(unknown[0], DATASETS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(DATASETS)}"
        raise MmdoraError(f"prep: no dataset {unknown[0]!r}; {hint}")
    for dataset in DATASETS.values():
        origin = dataset.origin
        print(f"{dataset.name:<14} {origin.licence}\n{'':<14} {origin.source}")
        for note in origin.unverified:
            print(f"{'':<14} unverified: {note}")
