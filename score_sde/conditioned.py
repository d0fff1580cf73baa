"""Functions of (x, t) with batch-first conditioning arrays: labels, scales, measurements, dropout keys.

Conditioning is explicit, so that a map over examples also maps over their conditioning.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from score_sde.errors import UserError

NULL_LABEL = -1  # class label of the unconditional prediction


@jax.tree_util.register_pytree_node_class
class Conditioned:
    """A function of (x, t) and of batch-first arrays; a pytree whose leaves are these arrays."""

    def __init__(self, function: Callable, parts: tuple, static: "_Static"):
        """Store the function and its arguments; see `conditioned`."""
        self.function, self.parts, self.static = function, parts, static

    def __call__(self, x, *times):
        """Evaluate the function on a batch, at one time per example, or at two (`flow_map`).

        Raises:
          UserError: if the batch sizes of x and the conditioning differ.
        """
        for leaf in jax.tree.leaves(self):
            if leaf.shape[0] != x.shape[0]:
                raise UserError(
                    f"denoiser: expected a batch of {leaf.shape[0]}, the number of its labels or other conditioning, "
                    f"got x of shape {x.shape}"
                )
        return self.function(x, *times, *self.parts)

    def evaluations(self, t: np.ndarray) -> np.ndarray:
        """Return the network evaluations per call at each time."""
        return self.static.evaluations(t)

    def tree_flatten(self):
        """Return the parts with conditioning as children, and everything else as static data."""
        carries = zip(self.parts, self.static.carries, strict=True)
        return tuple(part for part, carry in carries if carry), self.static

    @classmethod
    def tree_unflatten(cls, static, children):
        """Rebuild the function from `tree_flatten`'s static data and children."""
        rest = iter(children)
        carries = zip(static.parts, static.carries, strict=True)
        return cls(static.function, tuple(next(rest) if carry else part for part, carry in carries), static)


class _Static:
    """The static data of a `Conditioned`, compared by identity, since its parts may be traced scalars."""

    def __init__(self, function: Callable, parts: tuple, evaluations: Callable[[np.ndarray], np.ndarray]):
        self.function, self.parts, self.evaluations = function, parts, evaluations
        self.carries = [isinstance(part, Conditioned) or getattr(part, "ndim", 0) > 0 for part in parts]


def conditioned(function: Callable, *parts: Any, evaluations: Callable | None = None) -> Conditioned:
    """Return function(x, t, *parts) as a `Conditioned` with the conditioning of its parts.

    Args:
      function: Function (x, t, *parts) -> pytree of arrays.
      *parts: Arguments of the function. Batch-first arrays and `Conditioned` functions carry conditioning. Plain
        functions, numbers and None do not.
      evaluations: Function times -> network evaluations per call at these times. None sums over the parts that are
        functions, each called once; without such parts it is 1.
    """
    functions = [part for part in parts if callable(part)] or [function]
    counted = evaluations or (lambda t: np.sum([count_evaluations(part, t) for part in functions], axis=0))
    return Conditioned(function, parts, _Static(function, parts, counted))


def count_evaluations(function: Callable, t: np.ndarray) -> np.ndarray:
    """Return the network evaluations of one call at each time; a plain function counts as 1."""
    return function.evaluations(t) if isinstance(function, Conditioned) else np.ones(np.shape(t), int)


def map_examples(function: Callable, batch_fn: Callable, x: jax.Array, *rows: jax.Array) -> Any:
    """Map function(example_fn, x, *rows) over examples, where example_fn(x, t) is `batch_fn` for one example.

    Args:
      function: Function (example_fn, x (*event), *rows) -> pytree; example_fn takes x (*event) and t ().
      batch_fn: Function (x (batch, *event), t (batch,)) -> pytree of batch-first arrays. Each example uses its row of
        the conditioning.
      x: Points, (batch, *event).
      *rows: Further batch-first arrays.

    Raises:
      UserError: if `batch_fn` closes over arrays of this batch that are not part of its conditioning.
    """
    batch_fn = conditioned(lambda x, t, batch_fn: batch_fn(x, t), batch_fn)
    _check_conditioning(batch_fn, x)

    def map_one(batch_fn, x, *rows):
        batch_of_one = jax.tree.map(lambda leaf: leaf[None], batch_fn)
        return function(lambda x, t: jax.tree.map(lambda leaf: leaf[0], batch_of_one(x[None], t[None])), x, *rows)

    return jax.vmap(map_one)(batch_fn, x, *rows)


def _check_conditioning(batch_fn: Conditioned, x: jax.Array) -> None:
    """Raise UserError unless the function works for any batch size, tested by tracing it with one more example."""

    def trace(extra: int):
        def longer(leaf):
            return jax.ShapeDtypeStruct((leaf.shape[0] + extra, *leaf.shape[1:]), leaf.dtype)

        t = jax.ShapeDtypeStruct((len(x) + extra,), x.dtype)
        return jax.eval_shape(lambda f, x, t: f(x, t), jax.tree.map(longer, batch_fn), longer(x), t)

    if len(x) == 1:
        return
    try:
        sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(trace(1))}
    except (TypeError, ValueError):
        trace(0)  # re-raises an error that does not depend on the batch size
        sizes = set()
    if sizes != {(len(x) + 1,)}:
        raise UserError(
            f"denoiser: expected a function of any batch size, got one that works only for {len(x)} examples. Pass "
            "labels, scales and measurements as its conditioning (network(..., labels=...), guidance, or conditioned)"
        )
