"""Packages that are also the function of their name: `mmdora.train(…)` calls the function in `mmdora.train.run`.

A package and a function cannot both be the attribute `train` of `mmdora`, and importing the package would win. So the
package itself is made callable. The function is imported when it is first called or looked at.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class CalledPackage(ModuleType):
    """A package that hands calls on to a function in it; `help` and `inspect.signature` show that function's."""

    __wrapped_home__: tuple[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:
        module, name = self.__wrapped_home__
        return getattr(import_module(module), name)


def called(package: str, module: str, name: str) -> None:
    """Make an imported package callable.

    Args:
        package: its full name.
        module: full name of the module that has the function.
        name: the function's.
    """
    own = sys.modules[package]
    own.__class__ = CalledPackage
    own.__wrapped_home__ = (module, name)  # pyright: ignore[reportAttributeAccessIssue]
