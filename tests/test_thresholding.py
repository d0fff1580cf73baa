import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.parameterization import Prediction
from score_sde.sde import add_noise, vp
from score_sde.thresholding import clip_x0, dynamic_threshold

SDE = vp()
X0 = jnp.array([[0.5, -0.25, 3.0, -4.0], [0.1, 0.2, -0.3, 0.4]])
EPSILON = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)


def denoiser(x, t):
    return Prediction(X0, EPSILON)


@pytest.mark.parametrize("t", [jnp.float32(0.3), jnp.array([0.3, 0.7])])
def test_clipping_keeps_the_pair_consistent(t):
    x = add_noise(SDE, X0, EPSILON, t)
    x0, epsilon = clip_x0()(denoiser, SDE)(x, t)
    np.testing.assert_array_equal(x0, np.clip(X0, -1, 1))
    np.testing.assert_allclose(add_noise(SDE, x0, epsilon, t), x, rtol=1e-5)
    np.testing.assert_array_equal(epsilon[1], EPSILON[1])  # nothing to clip there


def test_dynamic_threshold_divides_by_the_examples_own_percentile():
    t = jnp.float32(0.3)
    x = add_noise(SDE, X0, EPSILON, t)
    x0, epsilon = dynamic_threshold(percentile=50.0)(denoiser, SDE)(x, t)
    s = np.median(np.abs(X0[0]))  # 1.75
    np.testing.assert_allclose(x0[0], np.clip(X0[0], -s, s) / s, rtol=1e-6)
    np.testing.assert_array_equal(x0[1], X0[1])  # its percentile is below 1
    np.testing.assert_allclose(add_noise(SDE, x0, epsilon, t), x, rtol=1e-5)
    limited = dynamic_threshold(percentile=50.0, largest=1.5)(denoiser, SDE)(x, t).x0
    np.testing.assert_allclose(limited[0], np.clip(X0[0], -1.5, 1.5) / 1.5, rtol=1e-6)


def test_wrong_arguments_are_refused():
    with pytest.raises(UserError, match="low < high"):
        clip_x0(low=1.0, high=1.0)
    with pytest.raises(UserError, match="0 < percentile <= 100"):
        dynamic_threshold(percentile=0.0)
    with pytest.raises(UserError, match="largest >= 1"):
        dynamic_threshold(largest=0.5)
