"""A YAML file, with what the command line overrides, as a `RunConfig`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdora.config.run import RunConfig
from mmdora.config.validate import validate
from mmdora.config.yaml_files import parse_yaml, read_yaml
from mmdora.errors import MmdoraError


def config_of(config: RunConfig | Mapping[str, Any] | Path | str) -> RunConfig:
    """A config as it is, of a dict of its sections, or of the path of a YAML file.

    Raises:
        MmdoraError: naming the key, and what was probably meant.
    """
    if isinstance(config, RunConfig):
        return config
    if isinstance(config, Mapping):
        return validate(RunConfig, copy.deepcopy(dict(config)), where=lambda key: "config")
    return load_config(config)


def load_config(path: Path | str, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file, apply `--a.b value` / `--a.b=value` overrides, validate.

    Raises:
        MmdoraError: naming the file (or "command line"), the key, and what was probably meant.
    """
    path = Path(path)
    tree = read_yaml(path, "config file")
    if not isinstance(tree, dict):
        raise MmdoraError(f"{path}: expected sections model, adapt, data, training; found {type(tree).__name__}")
    try:
        written = set(_keys(tree))
    except RecursionError:
        raise MmdoraError(f"{path}: a section contains itself, by an alias of YAML (*name); write it out") from None
    changed = _override(tree, list(overrides))

    def where(key: str) -> str:
        return "command line" if _within(key, changed, written) else str(path)

    return validate(RunConfig, tree, where=where)


def _keys(tree: dict[str, Any], before: str = "") -> Iterator[str]:
    """Every key of a tree of sections, and of what lies in them, with its sections before it."""
    for name, value in tree.items():
        yield f"{before}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{before}{name}.")


def _within(key: str, changed: set[str], written: set[str]) -> bool:
    """Whether a key was given on the command line: itself, what it is an item of, or only something in it.

    Args:
        changed: the keys of the command line.
        written: those of the file.
    """
    if any(f"{key}.".startswith(f"{own}.") for own in changed):
        return True
    return key not in written and any(own.startswith(f"{key}.") for own in changed)


def _override(tree: dict[str, Any], tokens: list[str]) -> set[str]:
    changed = set()
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("--"):
            raise MmdoraError(f"command line: expected --section.key, found {token!r}")
        key, joined, text = token[2:].partition("=")
        if not joined:
            if not tokens:
                raise MmdoraError(f"command line: --{key} needs a value")
            text = tokens.pop(0)
        key = key.replace("-", "_")
        node, parts = tree, key.split(".")
        for part in parts[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise MmdoraError(f"command line: --{key}: {part} is not a section")
            node = child
        try:
            node[parts[-1]] = parse_yaml(text)
        except MmdoraError:
            raise MmdoraError(f"command line: --{key}: {text!r} is not a YAML value") from None
        changed.add(key)
    return changed
