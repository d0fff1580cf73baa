"""Operators against NumPy written out, and against their own transposes and singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import operators
from score_sde.errors import UserError

SHAPE = (4, 6, 3)
RNG = np.random.default_rng(0)
SEEN = (RNG.random(SHAPE[:2]) > 0.4).astype(float)
KERNEL = RNG.random((3, 3))
MATRIX = RNG.standard_normal((5, 72))
TALL = RNG.standard_normal((80, 72))


def blurred(x):
    """The circular convolution, pixel by pixel."""
    out = np.zeros_like(x)
    for i in range(3):
        for j in range(3):
            out += KERNEL[i, j] * np.roll(x, (i - 1, j - 1), (1, 2))
    return out


CASES = {
    "mask": (operators.mask(SEEN, SHAPE), lambda x: x * SEEN[None, :, :, None]),
    "grey": (operators.grayscale(SHAPE), lambda x: x.mean(-1, keepdims=True)),
    "pool": (operators.pool(2, SHAPE), lambda x: x.reshape(-1, 2, 2, 3, 2, 3).mean((2, 4))),
    "blur": (operators.blur(KERNEL, SHAPE), blurred),
    "matrix": (operators.matrix(MATRIX, SHAPE), lambda x: x.reshape(len(x), -1) @ MATRIX.T),
    "tall": (operators.matrix(TALL, SHAPE), lambda x: x.reshape(len(x), -1) @ TALL.T),
}


@pytest.mark.parametrize("name", CASES)
def test_operators_match_numpy_with_transpose_and_svd(name, x64):
    operator, written_out = CASES[name]
    x = RNG.standard_normal((2, *SHAPE))
    y = operator.forward(x)
    np.testing.assert_allclose(y, written_out(x), atol=1e-12)
    other = RNG.standard_normal(y.shape)
    np.testing.assert_allclose(np.vdot(y, other), np.vdot(x, operator.transpose(jnp.asarray(other))), rtol=1e-10)
    svd = operator.svd
    spectrum = svd.vt(x)
    assert spectrum.shape[1:] == svd.singular.shape
    np.testing.assert_allclose(np.linalg.norm(spectrum), np.linalg.norm(x), rtol=1e-12)  # V is orthonormal
    np.testing.assert_allclose(svd.v(spectrum), x, atol=1e-12)
    np.testing.assert_allclose(svd.u(svd.ut(y)), y, atol=1e-10)  # U is, on what A reaches
    np.testing.assert_allclose(svd.ut(y), svd.singular[None] * spectrum, atol=1e-10)
    operators.check(operator, SHAPE)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("spread", "noise"), [(1.0, 0.0), (0.7, 0.3)])
def test_the_gain_is_the_regularized_inverse_by_svd_and_by_conjugate_gradients(name, spread, noise, x64):
    operator, written_out = CASES[name]
    dense = written_out(np.eye(72).reshape(72, *SHAPE)).reshape(72, -1).T
    x = RNG.standard_normal((2, *SHAPE))
    y = jnp.asarray(written_out(x))
    expected = spread * dense @ dense.T + noise**2 * np.eye(len(dense))
    expected = (dense.T @ np.linalg.pinv(expected, rcond=1e-10) @ np.asarray(y).reshape(2, -1).T).T.reshape(x.shape)
    np.testing.assert_allclose(operators.regularized_pinv(operator, y, spread, noise), expected, atol=1e-8)
    if name != "blur":  # so badly conditioned that 200 conjugate gradients don't solve it
        without = operators.Operator(operator.forward, operator.transpose)
        np.testing.assert_allclose(operators.regularized_pinv(without, y, spread, noise), expected, atol=1e-3)


def test_a_gaussian_kernel_sums_to_one():
    kernel = operators.gaussian_kernel(1.0, 5)
    np.testing.assert_allclose(kernel.sum(), 1.0)
    np.testing.assert_allclose(kernel[2, 1] / kernel[2, 2], np.exp(-0.5))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: operators.mask(np.ones((3, 3)), SHAPE), r"its shape is \(3, 3\), the data's \(4, 6, 3\)"),
        (lambda: operators.mask(np.zeros(SHAPE), SHAPE), "0 of 72 features are seen"),
        (lambda: operators.mask(np.ones(SHAPE), SHAPE), "72 of 72 features are seen"),
        (lambda: operators.mask(np.full(SHAPE, 0.5), SHAPE), "expected zeros and ones, got numbers from 0.5 to 0.5"),
        (lambda: operators.grayscale((4, 4, 1)), "have no colors"),
        (lambda: operators.pool(4, SHAPE), "divides height and width, got 4"),
        (lambda: operators.blur(np.ones((2, 2)), SHAPE), r"square kernel of odd size, .*got \(2, 2\)"),
        (lambda: operators.blur(np.ones((5, 5)), SHAPE), "no larger than the image"),
        (lambda: operators.matrix(np.ones((2, 5)), SHAPE), "expected 72 columns"),
        (lambda: operators.gaussian_kernel(0.0, 3), "need std > 0"),
        (lambda: operators.linear(lambda x: 2 * x, lambda y: 3 * y, SHAPE), "<A x, y> = .* but <x, A\\^T y> = "),
        (lambda: operators.linear(lambda x: x[:, :2], lambda y: y, SHAPE), "expected A\\^T y of shape"),
        (lambda: operators.linear(jnp.tanh, lambda y: y, SHAPE), "not linear: .* differ by"),
        (lambda: operators.regularized_pinv(operators.function(jnp.tanh), jnp.ones((1, 3)), 1.0, 0.0), "method='dps'"),
    ],
)
def test_invalid_operators_raise(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_a_correct_pair_passes():
    operator = operators.linear(lambda x: x[:, :2], lambda y: jnp.pad(y, ((0, 0), (0, 2), (0, 0), (0, 0))), SHAPE)
    assert operator.svd is None
    assert jax.eval_shape(operator.forward, jnp.zeros((1, *SHAPE))).shape == (1, 2, 6, 3)
