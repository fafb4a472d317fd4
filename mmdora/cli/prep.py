"""`mmdora prep`: a command for each module of `mmdora.data_prep`."""

from __future__ import annotations

import difflib
import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Annotated

from cyclopts import App

from mmdora.cli.app import Flag, Overrides, app
from mmdora.errors import MmdoraError

prep = App(
    name="prep",
    help="Turn a public dataset into records: mmdora prep NAME --in FILES --images DIR --out DIR.",
    sort_key=7,
)
app.command(prep)
DATASETS = tuple(module.name for module in pkgutil.iter_modules([str(Path(__file__).parents[1] / "data_prep")]))
for _name in DATASETS:
    prep.command(f"mmdora.data_prep.{_name}:prepare", name=_name.replace("_", "-"))


@prep.default
def prep_list(*unknown: Overrides, list: Annotated[bool, Flag] = False) -> None:
    """Turn a public dataset into records: `mmdora prep NAME --in FILES --images DIR --out DIR`.

    Without a name: the list. Example: `mmdora prep llava --in llava_v1_5_mix665k.json --images DIR --out data/llava`

    Parameters
    ----------
    list
        List the datasets with licence and source.
    """
    if unknown:
        known = [name.replace("_", "-") for name in DATASETS]
        close = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise MmdoraError(f"prep: no dataset {unknown[0]!r}; {hint}")
    for name in DATASETS:
        module = import_module(f"mmdora.data_prep.{name}")
        print(f"{module.NAME:<14} {module.LICENCE}\n{'':<14} {module.SOURCE}")
        for note in module.UNVERIFIED:
            print(f"{'':<14} unverified: {note}")
