"""Our DDPM++ and the PyTorch peer of the benchmarks are one function: same output, same gradient, weights copied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.models import create

pytestmark = pytest.mark.peers


def test_output_and_gradient_agree():
    import torch

    from benchmarks import torch_ddpmpp

    options = {
        "channels": 16,
        "multipliers": (1, 2),
        "num_res_blocks": 2,
        "attention_resolutions": (8,),
        "dropout": 0.0,
    }
    module = create("ddpmpp", **options)
    x = jax.random.normal(jax.random.key(0), (3, 16, 16, 2))
    level = jnp.array([0.5, 300.0, 999.0])
    params = module.init(jax.random.key(1), x, level)["params"]
    leaves, tree = jax.tree.flatten(params)  # away from the nearly zero start of the last layers
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, leaves)

    peer = torch_ddpmpp.DDPMpp(16, 2, *options.values())
    torch_ddpmpp.load(peer, jax.tree.map(np.asarray, params))
    image = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2), requires_grad=True)
    output = peer(image, torch.tensor(np.asarray(level)))
    (output**2).sum().backward()

    def squared(x):
        ours = module.apply({"params": params}, x, level)
        return jnp.sum(ours**2), ours

    gradient, ours = jax.jit(jax.grad(squared, has_aux=True))(x)
    # float32 through some 30 layers, as in tests/models/test_unet.py.
    for actual, expected in ((ours, output.detach()), (gradient, image.grad)):
        expected = expected.numpy().transpose(0, 2, 3, 1)
        assert np.abs(actual - expected).max() < 1e-4 * expected.std()
