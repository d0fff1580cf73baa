"""FLOPs from a traced program, loops as often as they run: XLA's cost analysis counts the body of a loop once."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def flops_of(function: Callable, *arguments: Any) -> float:
    """FLOPs of all its matrix products and convolutions, loops included; of arguments, or their shapes."""
    return 2 * _multiplications(jax.make_jaxpr(function)(*arguments).jaxpr, True)


def flops_of_repetitions(function: Callable, *arguments: Any) -> float:
    """FLOPs of the matrix products and convolutions in loops beyond the first time; of arguments, or their shapes."""
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    return 2 * (_multiplications(program, True) - _multiplications(program, False))


def _multiplications(jaxpr: Any, repeated: bool) -> float:
    """Of the matrix products and convolutions, which are all but a few."""
    total = 0.0
    for equation in jaxpr.eqns:
        times = equation.params["length"] if repeated and equation.primitive.name == "scan" else 1
        total += times * (_own(equation) + sum(_multiplications(inner, repeated) for inner in _inner(equation)))
    return total


def _own(equation: Any) -> float:
    out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return out * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if equation.primitive.name == "nhwc_convolution":
        return out * math.prod(equation.invars[1].aval.shape[:3])
    if equation.primitive.name == "conv_general_dilated":
        numbers, shape = equation.params["dimension_numbers"], equation.invars[1].aval.shape
        return out * math.prod(shape) / shape[numbers.rhs_spec[0]]
    return 0.0


def _inner(equation: Any) -> list[Any]:
    """The programs inside an equation: of a branch, that for the default platform alone."""
    found = []
    for name, value in equation.params.items():
        values = value if isinstance(value, tuple | list) else (value,)
        inner = [getattr(each, "jaxpr", each) for each in values]
        inner = [each for each in inner if isinstance(each, core.Jaxpr) or hasattr(each, "eqns")]
        found += inner[-1:] if name == "branches" else inner
    return found
