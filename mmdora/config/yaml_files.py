"""YAML as config files and overrides hold it: plain values, numbers as in YAML 1.2, no key twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mmdora.errors import MmdoraError
from mmdora.files import read_text


def read_yaml(path: Path, what: str) -> Any:
    """The one document of a YAML file, plain values only; no key twice in a mapping.

    Raises:
        MmdoraError: as `read_text`, or naming the line that is not valid.
    """
    text = read_text(path, what)
    try:
        return parse_yaml(text)
    except MmdoraError as error:
        raise MmdoraError(f"{path}: {error}") from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Numbers are those of YAML 1.2: `010` and `1:30`, which YAML 1.1 reads as 8 and 90, and
    dates are text.

    Raises:
        MmdoraError: it is not valid.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise MmdoraError(f"not valid YAML: {' '.join(str(error).split())}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested as deep
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MmdoraError(f"not valid YAML: {reason}") from None
    return value


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key that stands twice is an error; PyYAML would silently keep the later one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        text = super().construct_scalar(node)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise yaml.constructor.ConstructorError(
                None, None, "half of a surrogate pair, which is no text", node.start_mark
            ) from None
        return text


_YAML = "tag:yaml.org,2002:"
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*)$|0x[0-9a-fA-F_]+$")
_FLOATING = re.compile(
    r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag.removeprefix(_YAML) not in ("int", "float", "timestamp")]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_YAML}int", _WHOLE, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_YAML}float", _FLOATING, list("-+0123456789."))
