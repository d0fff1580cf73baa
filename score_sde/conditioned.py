"""Functions of (x, t) that carry the arrays they are conditioned on: labels, scales, measurements, dropout keys.

Conditioning is batch-first and explicit, so that whatever maps over examples maps over their conditioning too.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from score_sde.errors import UserError


@jax.tree_util.register_pytree_node_class
class Conditioned:
    """A function of (x, t) and of batch-first arrays; a pytree whose leaves are these arrays."""

    def __init__(self, function: Callable, *condition: Any, evaluations: Callable[[np.ndarray], np.ndarray]):
        self.function, self.condition, self.evaluations = function, condition, evaluations

    def __call__(self, x, t):
        """Evaluates the function on a batch.

        Raises:
          UserError: if x has another batch size than the conditioning.
        """
        for leaf in jax.tree.leaves(self.condition):
            if leaf.shape[0] != x.shape[0]:
                raise UserError(
                    f"denoiser: expected a batch of {leaf.shape[0]}, the number of its labels or other conditioning, "
                    f"got x of the shape {x.shape}"
                )
        return self.function(x, t, *self.condition)

    def tree_flatten(self):
        return self.condition, (self.function, self.evaluations)

    @classmethod
    def tree_unflatten(cls, static, condition):
        function, evaluations = static
        return cls(function, *condition, evaluations=evaluations)


def conditioned(function: Callable, *parts: Any, evaluations: Callable | None = None) -> Conditioned:
    """Joins function(x, t, *parts) with the conditioning of its parts.

    Args:
      function: (x, t, *parts) -> a pytree of arrays.
      parts: batch-first arrays and `Conditioned` functions, which carry conditioning; plain functions, numbers and
        None, which carry none.
      evaluations: times -> network evaluations of a call at these times; None: the sum over the parts that are
        functions, each called once.
    """
    carries = [isinstance(part, Conditioned) or getattr(part, "ndim", 0) > 0 for part in parts]

    def joined(x, t, *carried):
        rest = iter(carried)
        return function(x, t, *(next(rest) if carry else part for part, carry in zip(parts, carries, strict=True)))

    functions = [part for part in parts if callable(part)]
    counted = evaluations or (lambda t: np.sum([count_evaluations(part, t) for part in functions], axis=0))
    return Conditioned(
        joined, *(part for part, carry in zip(parts, carries, strict=True) if carry), evaluations=counted
    )


def count_evaluations(function: Callable, t: np.ndarray) -> np.ndarray:
    """Counts the network evaluations of a call at each time; those of a plain function are 1."""
    return function.evaluations(t) if isinstance(function, Conditioned) else np.ones(np.shape(t), int)


def map_examples(function: Callable, of_batch: Callable, x: jax.Array, *rows: jax.Array) -> Any:
    """Maps function(of_one, x, *rows) over examples, where of_one(x, t) is `of_batch` for one example.

    Args:
      function: (of_one, x (*event), *rows) -> a pytree; of_one takes x (*event) and t ().
      of_batch: (x (batch, *event), t (batch,)) -> a pytree of batch-first arrays; each example gets its row of the
        conditioning.
      x: (batch, *event).
      rows: further batch-first arrays.

    Raises:
      UserError: if `of_batch` holds arrays of this batch that are not part of its conditioning.
    """
    of_batch = conditioned(lambda x, t, of_batch: of_batch(x, t), of_batch)
    _check_conditioning(of_batch, x)

    def one(of_batch, x, *rows):
        alone = jax.tree.map(lambda leaf: leaf[None], of_batch)
        return function(lambda x, t: jax.tree.map(lambda part: part[0], alone(x[None], t[None])), x, *rows)

    return jax.vmap(one)(of_batch, x, *rows)


def _check_conditioning(of_batch: Conditioned, x: jax.Array) -> None:
    """Raises UserError if the function works for a batch of this size alone, by tracing it with one example more."""

    def trace(extra: int):
        def longer(leaf):
            return jax.ShapeDtypeStruct((leaf.shape[0] + extra, *leaf.shape[1:]), leaf.dtype)

        t = jax.ShapeDtypeStruct((len(x) + extra,), x.dtype)
        return jax.eval_shape(lambda f, x, t: f(x, t), jax.tree.map(longer, of_batch), longer(x), t)

    if len(x) == 1:
        return
    try:
        sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(trace(1))}
    except (TypeError, ValueError):
        trace(0)  # an error that has nothing to do with the batch size is raised as it is
        sizes = set()
    if sizes != {(len(x) + 1,)}:
        raise UserError(
            f"denoiser: expected a function of any batch size, got one that works for {len(x)} examples only. Pass "
            "labels, scales and measurements as its conditioning (network(..., labels=...), guidance, or conditioned)"
        )
