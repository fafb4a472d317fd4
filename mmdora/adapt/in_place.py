"""Whether a model writes into what a module gave it, as the source of its class shows.

Backward of an adapted layer reads the layer's output y, which the next operation keeps anyway. A model that writes
into y takes that away: Gemma 3n multiplies the output of `per_layer_model_projection` by a number, and OLMo clamps its
queries, keys and values. The layers of such outputs keep z beside y instead.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache

from torch import nn


@cache
def writes_into(parent: type[nn.Module], leaf: str) -> bool:
    """Whether a method of this class writes into a variable that holds the output of `self.leaf`, or a view of it.

    A variable counts from its first such assignment to the end of the method, so an output that was copied before may
    count too. That costs memory alone.
    """
    own = [kind for kind in parent.__mro__ if not kind.__module__.startswith(("torch.", "builtins"))]
    try:
        trees = [ast.parse(textwrap.dedent(inspect.getsource(kind))) for kind in own]
    except (OSError, TypeError):
        return False
    methods = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return any(_held(method, leaf) & _written(method) for method in methods)


def _held(method: ast.FunctionDef, leaf: str) -> set[str]:
    """The variables that hold an output of `self.leaf`, or what was made of such a variable by its own methods."""
    held: set[str] = set()
    for node in ast.walk(method):
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        source = _source(node.value)
        if source == f"self.{leaf}" or source in held:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            held |= {name for target in targets for name in _names(target)}
    return held


def _written(method: ast.FunctionDef) -> set[str]:
    """The variables that the method writes into: `y *= a`, `y[0] = a`, `y.mul_(a)`."""
    written: set[str] = set()
    for node in ast.walk(method):
        if isinstance(node, ast.AugAssign):
            written.update(_names(node.target))
        elif isinstance(node, ast.Assign):
            written.update(name for t in node.targets if isinstance(t, ast.Subscript) for name in _names(t))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = node.func.attr
            if called.endswith("_") and not called.endswith("__"):
                written.update(_names(node.func.value))
    return written


def _source(value: ast.expr) -> str:
    """What an expression takes its tensor from: `self.leaf` of `self.leaf(x).view(2)`, and `y` of `y[0].flatten()`."""
    while True:
        if isinstance(value, ast.Call):
            value = value.func
            if isinstance(value, ast.Attribute) and not _is_self(value):
                value = value.value
        elif isinstance(value, (ast.Subscript, ast.Attribute)) and not _is_self(value):
            value = value.value
        else:
            return ast.unparse(value)


def _is_self(value: ast.expr) -> bool:
    return isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id == "self"


def _names(target: ast.expr) -> Iterator[str]:
    """The variables in the target of an assignment; `y` of `y[0]`."""
    while isinstance(target, ast.Subscript):
        target = target.value
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, (ast.Tuple, ast.List)):
        for element in target.elts:
            yield from _names(element)
