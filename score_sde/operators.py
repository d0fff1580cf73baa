"""What inverse problems observe: y = A x0 + noise. An operator is A, its transpose and, where known, its SVD.

A = U diag(s) V^T, with V orthonormal over the whole event and s as large as the event, 0 where A sees nothing. All
functions take and give batches, x: (batch, *event), y: (batch, *measured).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from score_sde.errors import UserError
from score_sde.sde import lift

FAINT = 1e-5  # of the largest singular value: what is fainter is lost in float32, and counts as unseen


class SVD(NamedTuple):
    """A = U diag(singular) V^T; a spectrum is (batch, *shape of singular), complex under the FFT."""

    singular: np.ndarray  # 0 or more; its shape is the spectrum's
    vt: Callable  # x -> its spectrum, V^T x
    v: Callable  # spectrum -> x
    ut: Callable  # y -> a spectrum, U^T y, 0 where singular is
    u: Callable  # spectrum -> y


class Operator(NamedTuple):
    """A of y = A x0 + noise."""

    forward: Callable  # x -> A x
    transpose: Callable | None = None  # y -> A^T y; None: A is not linear
    svd: SVD | None = None


def of_svd(svd: SVD) -> Operator:
    """The operator of an SVD."""

    def scaled(spectrum):
        spectrum = jnp.asarray(spectrum)
        return jnp.asarray(svd.singular, spectrum.real.dtype)[None] * spectrum

    return Operator(lambda x: svd.u(scaled(svd.vt(x))), lambda y: svd.v(scaled(svd.ut(y))), svd)


def mask(seen: np.ndarray, event_shape: tuple[int, ...]) -> Operator:
    """Inpainting: the features where `seen` is 1; y has the event's shape, with 0 elsewhere.

    Args:
      seen: zeros and ones, of the event's shape, or (height, width) for all channels.
      event_shape: of one example.

    Raises:
      UserError: the mask has another shape, other numbers, sees nothing, or hides nothing.
    """
    seen = np.asarray(seen)
    where = "(set --config.sampling.task_kwargs.mask)"
    if seen.shape == event_shape[:-1] and len(event_shape) == 3:
        seen = np.repeat(seen[..., None], event_shape[-1], axis=-1)
    if seen.shape != event_shape:
        raise UserError(f"mask: its shape is {seen.shape}, the data's {event_shape} {where}")
    if not np.isin(seen, (0, 1)).all():
        raise UserError(f"mask: 1 is seen and 0 is not, got numbers from {seen.min()} to {seen.max()} {where}")
    if not 0 < seen.sum() < seen.size:
        raise UserError(f"mask: {int(seen.sum())} of {seen.size} features are seen; some, but not all, must be {where}")

    def keep(x):
        return jnp.asarray(seen, x.dtype)[None] * x

    return of_svd(SVD(seen.astype(np.float64), vt=lambda x: x, v=lambda c: c, ut=keep, u=keep))


def grey(event_shape: tuple[int, ...]) -> Operator:
    """Colorization's: the mean over channels, y (batch, height, width, 1).

    Raises:
      UserError: there are no colours.
    """
    channels = event_shape[-1]
    if len(event_shape) != 3 or channels < 2:
        raise UserError(f"grey: images of the shape {event_shape} have no colours", "task")
    rotation = _first_is_mean(channels)
    singular = np.zeros(event_shape)
    singular[..., 0] = channels**-0.5

    def ut(y):
        return jnp.concatenate([y, jnp.zeros((*y.shape[:-1], channels - 1), y.dtype)], axis=-1)

    return of_svd(
        SVD(
            singular,
            lambda x: x @ rotation.astype(x.dtype).T,
            lambda c: c @ rotation.astype(c.dtype),
            ut,
            lambda c: c[..., :1],
        )
    )


def pool(factor: int, event_shape: tuple[int, ...]) -> Operator:
    """Super-resolution's: means over squares of factor x factor, y (batch, height / factor, width / factor, channels).

    Raises:
      UserError: the factor doesn't divide the image, or there is none.
    """
    if len(event_shape) != 3 or factor < 2 or event_shape[0] % factor or event_shape[1] % factor:
        raise UserError(
            f"pool: a factor of at least 2 that divides height and width is needed, got {factor} for {event_shape}",
            "factor",
        )
    height, width, channels = event_shape
    rows, columns = height // factor, width // factor
    rotation = _first_is_mean(factor**2)
    singular = np.zeros((rows, columns, channels, factor**2))
    singular[..., 0] = 1 / factor

    def vt(x):
        blocks = x.reshape(-1, rows, factor, columns, factor, channels).transpose(0, 1, 3, 5, 2, 4)
        return blocks.reshape(-1, rows, columns, channels, factor**2) @ rotation.astype(x.dtype).T

    def v(c):
        blocks = (c @ rotation.astype(c.dtype)).reshape(-1, rows, columns, channels, factor, factor)
        return blocks.transpose(0, 1, 4, 2, 5, 3).reshape(-1, height, width, channels)

    def ut(y):
        return jnp.concatenate([y[..., None], jnp.zeros((*y.shape, factor**2 - 1), y.dtype)], axis=-1)

    return of_svd(SVD(singular, vt, v, ut, lambda c: c[..., 0]))


def _first_is_mean(n: int) -> np.ndarray:
    """An orthonormal (n, n) matrix whose first row is 1 / sqrt(n): the discrete cosine transform."""
    angles = np.pi / n * np.outer(np.arange(n), np.arange(n) + 0.5)
    rows = np.sqrt(2 / n) * np.cos(angles)
    rows[0] = n**-0.5
    return rows


def blur(kernel: np.ndarray, event_shape: tuple[int, ...]) -> Operator:
    """Deblurring's: a circular convolution with a kernel about its middle, by FFT; y has the event's shape.

    Args:
      kernel: (k, k), k odd.
      event_shape: (height, width, channels).

    Raises:
      UserError: the kernel is no square of odd size, or larger than the image.
    """
    kernel = np.asarray(kernel, np.float64)
    size = kernel.shape[0]
    if kernel.shape != (size, size) or size % 2 == 0 or len(event_shape) != 3 or size > min(event_shape[:2]):
        raise UserError(
            f"blur: the kernel must be a square of odd size, no larger than the image, got {kernel.shape} "
            f"for {event_shape}"
        )
    whole = np.zeros(event_shape[:2])
    whole[:size, :size] = kernel
    factors = np.fft.fft2(np.roll(whole, (-(size // 2), -(size // 2)), (0, 1)))
    size_of = np.abs(factors)
    told = size_of > FAINT * size_of.max()
    phase = np.where(told, factors / np.where(told, size_of, 1.0), 1.0)[..., None]
    singular = np.broadcast_to(np.where(told, size_of, 0.0)[..., None], event_shape)

    def there(x):
        return jnp.fft.fft2(x, axes=(1, 2), norm="ortho")

    def back(c):
        return jnp.fft.ifft2(c, axes=(1, 2), norm="ortho").real

    def turn(c, by):
        return c * jnp.asarray(by, c.dtype)[None]

    seen = singular > 0
    return of_svd(
        SVD(singular, there, back, lambda y: turn(there(y), np.conj(phase) * seen), lambda c: back(turn(c, phase)))
    )


def gaussian_kernel(std: float, size: int) -> np.ndarray:
    """A Gaussian of a standard deviation in pixels, cut to (size, size), of sum 1.

    Raises:
      UserError: std is not positive.
    """
    if not (isinstance(std, int | float) and std > 0 and isinstance(size, int) and size > 0):
        raise UserError(f"blur: need std > 0 and a size, got {std} and {size}")
    line = np.exp(-0.5 * ((np.arange(size) - size // 2) / std) ** 2)
    kernel = np.outer(line, line)
    return kernel / kernel.sum()


def matrix(a: np.ndarray, event_shape: tuple[int, ...]) -> Operator:
    """Any matrix (m, d) on flattened examples; y is (batch, m).

    Raises:
      UserError: the matrix has not as many columns as the event has numbers.
    """
    a = np.asarray(a, np.float64)
    dimension = int(np.prod(event_shape))
    if a.ndim != 2 or a.shape[1] != dimension:
        raise UserError(f"matrix: got the shape {a.shape}; as many columns as the data {event_shape} have: {dimension}")
    left, values, right = np.linalg.svd(a, full_matrices=True)
    values = np.where(values > FAINT * values.max(initial=0.0), values, 0.0)
    rank = len(values)
    singular = np.pad(values, (0, dimension - rank))

    def ut(y):
        spectrum = y @ (left[:, :rank] * (values > 0)).astype(y.dtype)
        return jnp.pad(spectrum, ((0, 0), (0, dimension - rank)))

    return of_svd(
        SVD(
            singular,
            lambda x: x.reshape(x.shape[0], -1) @ right.astype(x.dtype).T,
            lambda c: (c @ right.astype(c.dtype)).reshape(-1, *event_shape),
            ut,
            lambda c: c[:, :rank] @ left[:, :rank].astype(c.dtype).T,
        )
    )


def linear(forward: Callable, transpose: Callable, event_shape: tuple[int, ...]) -> Operator:
    """Any linear operator, by A and A^T; checked by random probes.

    Raises:
      UserError: as of `check`.
    """
    operator = Operator(forward, transpose)
    check(operator, event_shape)
    return operator


def function(forward: Callable) -> Operator:
    """Any differentiable function x -> y, for methods that need no more."""
    return Operator(forward)


def check(operator: Operator, event_shape: tuple[int, ...], num_probes: int = 4) -> None:
    """Refuses an operator that isn't linear, or whose transpose isn't its transpose, by random probes.

    A float32 sum of d products of random signs is right to about 1e-7 of the vectors' lengths, so a difference above
    1e-4 is no rounding.

    Raises:
      UserError: there is no transpose, or one of the two, with <A x, y> and <x, A^T y>.
    """
    if operator.transpose is None:
        raise UserError("this operator has no transpose (use operators.linear, or method='dps', which needs none)")
    keys = jax.random.split(jax.random.key(0), 3)
    x, other = (jax.random.normal(key, (num_probes, *event_shape)) for key in keys[:2])
    measured = operator.forward(x)
    both = operator.forward(x + other)
    apart = float(jnp.linalg.norm(both - measured - operator.forward(other)) / jnp.linalg.norm(both))
    if not apart < 1e-4:
        raise UserError(
            f"this operator is not linear: A(a + b) and A(a) + A(b) differ by {apart:.2g} of their size (use "
            "operators.function, and method='dps')"
        )
    y = jax.random.normal(keys[2], measured.shape)
    back = operator.transpose(y)
    if back.shape != x.shape:
        raise UserError(f"the transpose gives the shape {back.shape[1:]} for the data's {x.shape[1:]}")
    for n in range(num_probes):
        there = float(jnp.vdot(measured[n], y[n]))
        here = float(jnp.vdot(x[n], back[n]))
        size = float(jnp.linalg.norm(measured[n]) * jnp.linalg.norm(y[n]))
        if not abs(there - here) <= 1e-4 * size:
            raise UserError(
                f"the transpose is not the operator's transpose: <A x, y> = {there:.6g} but <x, A^T y> = {here:.6g}"
            )


def gain(operator: Operator, residual: jax.Array, variance: ArrayLike, noise: float) -> jax.Array:
    """A^T (variance A A^T + noise^2)^-1 residual: what a Gaussian x0 of this variance makes of a residual.

    With noise 0 and variance 1 it is the pseudo-inverse. By the SVD, or by conjugate gradients where there is none.

    Args:
      operator: linear.
      residual: (batch, *measured).
      variance: Variance of x0; a number, or (batch,).
      noise: the standard deviation of the measurement.

    Returns:
      (batch, *event).

    Raises:
      UserError: the operator is not linear.
    """
    if operator.transpose is None:
        raise UserError("this method needs a linear operator (set method='dps', which takes any function)")
    if operator.svd is not None:
        singular = jnp.asarray(operator.svd.singular, residual.dtype)
        seen = singular > 0
        found = operator.svd.ut(residual)
        total = lift(variance, found) * singular[None] ** 2 + noise**2
        weight = jnp.where(seen[None], singular[None] / jnp.where(seen[None], total, 1.0), 0.0)
        return operator.svd.v(weight * found)

    transpose = operator.transpose

    def normal(u):
        return lift(variance, u) * operator.forward(transpose(u)) + noise**2 * u

    return transpose(jax.scipy.sparse.linalg.cg(normal, residual, tol=1e-6, maxiter=200)[0])
