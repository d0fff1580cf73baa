"""FLOPs of a traced program, once per loop iteration; XLA's cost analysis counts the body of a loop only once."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable, *arguments: Any) -> float:
    """Return the FLOPs of all matrix products and convolutions, including loops, for arguments or their shapes."""
    return 2 * _multiplications(jax.make_jaxpr(function)(*arguments).jaxpr, True)


def count_repeated_flops(function: Callable, *arguments: Any) -> float:
    """Return the FLOPs of the iterations of each `lax.scan` after the first, which XLA's cost analysis leaves out.

    The arguments are arrays or ShapeDtypeStructs. Only matrix products and convolutions count.
    """
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    return 2 * (_multiplications(program, True) - _multiplications(program, False))


def _multiplications(jaxpr: Any, repeated: bool) -> float:
    """Count the multiplications of matrix products and convolutions; others are negligible."""
    total = 0.0
    for equation in jaxpr.eqns:
        trips = equation.params["length"] if repeated and equation.primitive.name == "scan" else 1
        nested = sum(_multiplications(inner, repeated) for inner in _inner(equation))
        total += trips * (_equation_multiplications(equation) + nested)
    return total


def _equation_multiplications(equation: Any) -> float:
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
    """Return the programs inside an equation; of a branch only the one for the default platform."""
    programs = []
    for name, value in equation.params.items():
        values = value if isinstance(value, tuple | list) else (value,)
        inner = [getattr(item, "jaxpr", item) for item in values]
        inner = [item for item in inner if isinstance(item, core.Jaxpr) or hasattr(item, "eqns")]
        programs += inner[-1:] if name == "branches" else inner
    return programs
