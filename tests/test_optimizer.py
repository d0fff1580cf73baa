"""What an optimizer leaves as it is."""

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.models import create
from score_sde.optimizer import make_optimizer


def test_frequencies_stay_and_magnitude_preserving_kernels_keep_their_size():
    """Under weight decay and a learning rate that moves every weight by 1."""
    module = create("edm2", channels=8, multipliers=(1,), num_res_blocks=1, attention_resolutions=(), head_channels=4)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))["params"]
    rng = np.random.default_rng(0)
    params, gradient = (jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes) for _ in range(2))
    optimizer = make_optimizer("adamw", 1.0, 0, 1.0, {"weight_decay": 0.5})
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    after = jax.tree.map(jnp.add, params, updates)
    for name in ("frequencies", "phases"):
        np.testing.assert_array_equal(after["fourier"][name], params["fourier"][name])
    kernel, before = (tree["conv_in"]["magnitude_preserving"] for tree in (after, params))
    np.testing.assert_allclose(jnp.mean(kernel**2, axis=(0, 1, 2)), 1, rtol=1e-3)  # its epsilon is 1e-4
    assert float(jnp.abs(kernel - before).mean()) > 0.1
    assert float(after["gain"]) != float(params["gain"])
