"""Networks of other libraries, weights imported, against what those libraries computed; files read and refused."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.models import pretrained
from score_sde.parameterization import make_denoiser
from score_sde.sde import SDES

ORACLES = sorted((Path(__file__).parents[1] / "reference").glob("*.npz"))


def opened(path):
    """The family, config, weights and everything else of an archive."""
    archive = np.load(path)
    weights = {name.removeprefix("weights/"): archive[name] for name in archive.files if name.startswith("weights/")}
    return path.name.split("_")[0].replace("score", "score_sde"), json.loads(str(archive["config"])), weights, archive


def computed(family, config, weights, archive):
    module, variables = pretrained.load(family, weights, config)
    if family == "score_sde":
        level = archive["noise_label"]
        level = np.log(level) if config["model"]["embedding_type"] == "fourier" else level
        return jax.jit(module.apply)(variables, archive["input"], level)
    target = pretrained.target(family, config)
    labels = archive["labels"].argmax(1) if archive["labels"].shape[1] else None
    augment = None

    def network(x, level):
        return module.apply(variables, x, level, labels, augment=augment)

    sde = SDES["edm"]()  # at sigma = t
    denoiser = make_denoiser(network, sde, target.prediction, target.preconditioning)
    return jax.jit(lambda x, sigma: denoiser(x, sigma).x0)(archive["input"], jnp.asarray(archive["sigma"]))


@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_imported_weights_give_the_reference_implementations_output(path):
    family, config, weights, archive = opened(path)
    output = computed(family, config, weights, archive)
    # float32 through some 30 layers: relative rounding of 1e-7 a layer, so 1e-5; a tenfold margin.
    assert np.abs(output - archive["output"]).max() < 1e-4 * archive["output"].std()
