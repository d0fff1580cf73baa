"""Dropout: its rate, its mean, its independence, and what decides it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.models.layers import Dropout


def drop(rate, x, seed=0, train=True):
    return Dropout(rate).apply({}, x, train, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
def test_dropout_has_its_rate_and_keeps_the_mean(rate):
    number = 999_999  # odd: the last word has one number to spare
    dropped = np.asarray(drop(rate, jnp.ones(number))) == 0
    probability = round(rate * 2**16) / 2**16
    deviation = np.sqrt(rate * (1 - rate) / number)
    assert abs(dropped.mean() - probability) < 4 * deviation
    # Neither the two numbers of a word nor neighboring words go together.
    for distance in (1, 2):
        together = np.mean(dropped[::2][: number // 4] & dropped[distance::2][: number // 4])
        assert abs(together - probability**2) < 4 * np.sqrt(probability**2 / (number // 4))
    kept = np.asarray(drop(rate, jnp.ones(101)))
    assert np.any(kept)
    np.testing.assert_allclose(kept[kept != 0], 1 / (1 - probability), rtol=1e-6)


def test_the_key_alone_decides():
    x = jax.random.normal(jax.random.key(1), (2, 3, 5))
    np.testing.assert_array_equal(drop(0.5, x), drop(0.5, x))
    assert np.any(np.asarray(drop(0.5, x)) != np.asarray(drop(0.5, x, seed=1)))
    np.testing.assert_array_equal(drop(0.5, x, train=False), x)
    np.testing.assert_array_equal(drop(0.0, x), x)
    assert drop(0.5, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert np.mean(np.asarray(drop(1 - 1e-9, jnp.ones(10_000))) == 0) > 0.99
