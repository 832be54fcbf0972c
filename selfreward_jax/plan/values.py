"""The largest values that a program computes, from its trace: what to look at when the compiler gives up on it."""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend import core

from selfreward_jax.plan.shapes import Planned


def largest_values(planned: Planned, most: int = 8) -> list[tuple[str, str, float]]:
    """(source, type and shape, bytes on all devices together) of the largest, one of each shape."""
    found: dict[str, tuple[str, float]] = {}
    for source, value in _values(planned.trace().jaxpr.jaxpr, ""):
        aval: Any = value.aval
        if not isinstance(aval, ShapedArray):
            continue
        array = f"{aval.dtype}[{','.join(map(str, aval.shape))}]"
        found.setdefault(array, (source, float(math.prod(aval.shape) * aval.dtype.itemsize)))
    rows = [(source, array, size) for array, (source, size) in found.items()]
    return sorted(rows, key=lambda row: -row[2])[:most]


def largest_arguments(planned: Planned, most: int = 8) -> list[tuple[str, str, float]]:
    """The same of the arrays that it is called with."""
    found: dict[str, tuple[str, float]] = {}
    for path, x in jax.tree.leaves_with_path(planned.arguments):
        array = f"{x.dtype}[{','.join(map(str, x.shape))}]"
        name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
        found.setdefault(array, (name, float(math.prod(x.shape) * x.dtype.itemsize)))
    rows = [(source, array, size) for array, (source, size) in found.items()]
    return sorted(rows, key=lambda row: -row[2])[:most]


def _values(jaxpr, outer: str) -> Iterator[tuple[str, core.Var]]:
    for equation in jaxpr.eqns:
        source = "/".join(filter(None, (outer, str(equation.source_info.name_stack), equation.primitive.name)))
        for value in equation.outvars:
            yield source, value
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if isinstance(inner, core.Jaxpr):
                    yield from _values(inner, source)
