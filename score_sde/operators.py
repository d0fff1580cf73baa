"""Measurement operators A of inverse problems y = A x0 + noise, with their transposes and SVDs where known.

A = U diag(s) V^T, where V is orthonormal over the whole event, and s has as many entries as the event, which are 0 for
unobserved directions. All functions take and return batches, x: (batch, *event), y: (batch, *measured).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from score_sde.errors import UserError
from score_sde.sde import lift

RANK_TOLERANCE = 1e-5  # relative to the largest singular value; smaller ones are lost in float32 and count as 0


class SVD(NamedTuple):
    """Singular value decomposition A = U diag(singular) V^T; a spectrum is (batch, *singular.shape), maybe complex."""

    singular: np.ndarray  # singular values, non-negative
    vt: Callable  # x -> spectrum V^T x
    v: Callable  # spectrum -> x
    ut: Callable  # y -> spectrum U^T y, 0 where singular is 0
    u: Callable  # spectrum -> y


class Operator(NamedTuple):
    """Measurement operator A of y = A x0 + noise."""

    forward: Callable  # x -> A x
    transpose: Callable | None = None  # y -> A^T y; None if A is not linear
    svd: SVD | None = None


def from_svd(svd: SVD) -> Operator:
    """Return the operator of an SVD."""

    def scaled(spectrum):
        spectrum = jnp.asarray(spectrum)
        return jnp.asarray(svd.singular, spectrum.real.dtype)[None] * spectrum

    return Operator(lambda x: svd.u(scaled(svd.vt(x))), lambda y: svd.v(scaled(svd.ut(y))), svd)


def mask(observed: np.ndarray, event_shape: tuple[int, ...]) -> Operator:
    """Return the inpainting operator, y = `observed` * x.

    Args:
      observed: Mask that is 1 for observed and 0 for unobserved features, of the event's shape or (height, width).
      event_shape: Shape of one example.

    Raises:
      UserError: if the mask has another shape or other values, or if it observes all or no features.
    """
    observed = np.asarray(observed)
    if observed.shape == event_shape[:-1] and len(event_shape) == 3:
        observed = np.repeat(observed[..., None], event_shape[-1], axis=-1)
    if observed.shape != event_shape:
        raise UserError(f"mask: its shape is {observed.shape}, the data's {event_shape}", "mask")
    if not np.isin(observed, (0, 1)).all():
        raise UserError(f"mask: expected zeros and ones, got numbers from {observed.min()} to {observed.max()}", "mask")
    if not 0 < observed.sum() < observed.size:
        raise UserError(
            f"mask: {int(observed.sum())} of {observed.size} features are seen; expected some, but not all", "mask"
        )

    def keep(x):
        return jnp.asarray(observed, x.dtype)[None] * x

    return from_svd(SVD(observed.astype(np.float64), vt=lambda x: x, v=lambda c: c, ut=keep, u=keep))


def grayscale(event_shape: tuple[int, ...]) -> Operator:
    """Return the grayscale operator of colorization, the mean over channels: y (batch, height, width, 1).

    Args:
      event_shape: Shape (height, width, channels) of one example.

    Raises:
      UserError: unless the data are images of at least 2 channels.
    """
    channels = event_shape[-1]
    if len(event_shape) != 3 or channels < 2:
        raise UserError(f"grayscale: images of the shape {event_shape} have no colors", "task")
    rotation = _first_is_mean(channels)
    singular = np.zeros(event_shape)
    singular[..., 0] = channels**-0.5

    def ut(y):
        return jnp.concatenate([y, jnp.zeros((*y.shape[:-1], channels - 1), y.dtype)], axis=-1)

    return from_svd(
        SVD(
            singular,
            lambda x: x @ rotation.astype(x.dtype).T,
            lambda c: c @ rotation.astype(c.dtype),
            ut,
            lambda c: c[..., :1],
        )
    )


def pool(factor: int, event_shape: tuple[int, ...]) -> Operator:
    """Return the average pooling of super-resolution: y (batch, height / factor, width / factor, channels).

    Args:
      factor: Side of the pooled squares in pixels.
      event_shape: Shape (height, width, channels) of one example.

    Raises:
      UserError: unless the data are images whose sides are multiples of the factor.
    """
    if len(event_shape) != 3 or factor < 2 or event_shape[0] % factor or event_shape[1] % factor:
        raise UserError(
            f"pool: expected a factor of at least 2 that divides height and width, got {factor} for {event_shape}",
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

    return from_svd(SVD(singular, vt, v, ut, lambda c: c[..., 0]))


def _first_is_mean(n: int) -> np.ndarray:
    """Return the discrete cosine transform, an orthonormal (n, n) matrix whose first row is 1 / sqrt(n)."""
    angles = np.pi / n * np.outer(np.arange(n), np.arange(n) + 0.5)
    rows = np.sqrt(2 / n) * np.cos(angles)
    rows[0] = n**-0.5
    return rows


def blur(kernel: np.ndarray, event_shape: tuple[int, ...]) -> Operator:
    """Return the blur operator, a circular convolution with a centered kernel by FFT; y has the event's shape.

    Args:
      kernel: Kernel (k, k), k odd.
      event_shape: Shape (height, width, channels) of one example.

    Raises:
      UserError: unless the kernel is a square of odd size, no larger than the image.
    """
    kernel = np.asarray(kernel, np.float64)
    size = kernel.shape[0]
    if kernel.shape != (size, size) or size % 2 == 0 or len(event_shape) != 3 or size > min(event_shape[:2]):
        raise UserError(
            f"blur: expected a square kernel of odd size, no larger than the image, got {kernel.shape} for "
            f"{event_shape}"
        )
    padded = np.zeros(event_shape[:2])
    padded[:size, :size] = kernel
    transfer = np.fft.fft2(np.roll(padded, (-(size // 2), -(size // 2)), (0, 1)))
    magnitude = np.abs(transfer)
    nonzero = magnitude > RANK_TOLERANCE * magnitude.max()
    phase = np.where(nonzero, transfer / np.where(nonzero, magnitude, 1.0), 1.0)[..., None]
    singular = np.broadcast_to(np.where(nonzero, magnitude, 0.0)[..., None], event_shape)

    def fft(x):
        return jnp.fft.fft2(x, axes=(1, 2), norm="ortho")

    def inverse_fft(c):
        return jnp.fft.ifft2(c, axes=(1, 2), norm="ortho").real

    def scale(c, factor):
        return c * jnp.asarray(factor, c.dtype)[None]

    observed = singular > 0
    return from_svd(
        SVD(
            singular,
            fft,
            inverse_fft,
            lambda y: scale(fft(y), np.conj(phase) * observed),
            lambda c: inverse_fft(scale(c, phase)),
        )
    )


def gaussian_kernel(std: float, size: int) -> np.ndarray:
    """Return a Gaussian kernel (size, size), normalized to sum 1.

    Args:
      std: Standard deviation in pixels.
      size: Side of the kernel in pixels.

    Raises:
      UserError: unless std and size are positive and size is an integer.
    """
    if not (isinstance(std, int | float) and std > 0 and isinstance(size, int) and size > 0):
        raise UserError(f"blur: need std > 0 and a size, got {std} and {size}")
    line = np.exp(-0.5 * ((np.arange(size) - size // 2) / std) ** 2)
    kernel = np.outer(line, line)
    return kernel / kernel.sum()


def matrix(a: np.ndarray, event_shape: tuple[int, ...]) -> Operator:
    """Return the operator of a matrix (m, d) on flattened examples of d numbers; y is (batch, m).

    Args:
      a: Matrix, (m, d).
      event_shape: Shape of one example.

    Raises:
      UserError: unless the matrix has d columns.
    """
    a = np.asarray(a, np.float64)
    dimension = int(np.prod(event_shape))
    if a.ndim != 2 or a.shape[1] != dimension:
        raise UserError(f"matrix: expected {dimension} columns, for data of shape {event_shape}, got shape {a.shape}")
    left, values, right = np.linalg.svd(a, full_matrices=True)
    values = np.where(values > RANK_TOLERANCE * values.max(initial=0.0), values, 0.0)
    rank = len(values)
    singular = np.pad(values, (0, dimension - rank))

    def ut(y):
        spectrum = y @ (left[:, :rank] * (values > 0)).astype(y.dtype)
        return jnp.pad(spectrum, ((0, 0), (0, dimension - rank)))

    return from_svd(
        SVD(
            singular,
            lambda x: x.reshape(x.shape[0], -1) @ right.astype(x.dtype).T,
            lambda c: (c @ right.astype(c.dtype)).reshape(-1, *event_shape),
            ut,
            lambda c: c[:, :rank] @ left[:, :rank].astype(c.dtype).T,
        )
    )


def linear(forward: Callable, transpose: Callable, event_shape: tuple[int, ...]) -> Operator:
    """Return the linear operator with forward A and transpose A^T, validated with random probes.

    Args:
      forward: Function x -> A x.
      transpose: Function y -> A^T y.
      event_shape: Shape of one example.

    Raises:
      UserError: see `check`.
    """
    operator = Operator(forward, transpose)
    check(operator, event_shape)
    return operator


def function(forward: Callable) -> Operator:
    """Return the operator of a differentiable function x -> y, for methods that work with nonlinear operators."""
    return Operator(forward)


def check(operator: Operator, event_shape: tuple[int, ...], num_probes: int = 4) -> None:
    """Raise UserError unless the operator is linear and its transpose is consistent, tested with random probes.

    In float32 the rounding error of an inner product is about 1e-7 of the product of the norms, so a relative
    difference above 1e-4 is not rounding.

    Args:
      operator: Operator to test.
      event_shape: Shape of one example.
      num_probes: Number of random probes.

    Raises:
      UserError: if there is no transpose, A is not linear, or <A x, y> differs from <x, A^T y>.
    """
    if operator.transpose is None:
        raise UserError(
            "operator: expected a transpose (use operators.linear, or method='dps', which works without)", "method=dps"
        )
    keys = jax.random.split(jax.random.key(0), 3)
    x, other = (jax.random.normal(key, (num_probes, *event_shape)) for key in keys[:2])
    measured = operator.forward(x)
    sum_measured = operator.forward(x + other)
    difference = float(
        jnp.linalg.norm(sum_measured - measured - operator.forward(other)) / jnp.linalg.norm(sum_measured)
    )
    if not difference < 1e-4:
        raise UserError(
            f"operator: not linear: A(a + b) and A(a) + A(b) differ by {difference:.2g} of their norm (use "
            "operators.function and method='dps')",
            "method=dps",
        )
    y = jax.random.normal(keys[2], measured.shape)
    transposed = operator.transpose(y)
    if transposed.shape != x.shape:
        raise UserError(f"operator: expected A^T y of shape {x.shape[1:]}, got {transposed.shape[1:]}")
    for n in range(num_probes):
        ax_y = float(jnp.vdot(measured[n], y[n]))
        x_aty = float(jnp.vdot(x[n], transposed[n]))
        norms = float(jnp.linalg.norm(measured[n]) * jnp.linalg.norm(y[n]))
        if not abs(ax_y - x_aty) <= 1e-4 * norms:
            raise UserError(f"operator: wrong transpose: <A x, y> = {ax_y:.6g} but <x, A^T y> = {x_aty:.6g}")


def regularized_pinv(operator: Operator, residual: jax.Array, variance: ArrayLike, noise: float) -> jax.Array:
    """Return A^T (variance A A^T + noise^2)^-1 residual, (batch, *event).

    Times the variance this is the posterior mean of x0 ~ N(0, variance I) given the residual. With noise 0 and variance
    1 it is the pseudo-inverse. It uses the SVD if known, otherwise conjugate gradients.

    Args:
      operator: Linear operator.
      residual: Residual y - A x0, (batch, *measured).
      variance: Variance of x0, a number or (batch,).
      noise: Standard deviation of the measurement noise.

    Raises:
      UserError: if the operator is not linear.
    """
    if operator.transpose is None:
        raise UserError("this method needs a linear operator; method='dps' takes any function", "method=dps")
    if operator.svd is not None:
        singular = jnp.asarray(operator.svd.singular, residual.dtype)
        observed = singular > 0
        spectrum = operator.svd.ut(residual)
        total = lift(variance, spectrum) * singular[None] ** 2 + noise**2
        weight = jnp.where(observed[None], singular[None] / jnp.where(observed[None], total, 1.0), 0.0)
        return operator.svd.v(weight * spectrum)

    transpose = operator.transpose

    def normal(u):
        return lift(variance, u) * operator.forward(transpose(u)) + noise**2 * u

    return transpose(jax.scipy.sparse.linalg.cg(normal, residual, tol=1e-6, maxiter=200)[0])
