"""The precision of products in the modes likelihood and certify."""

import jax
import pytest

from configs import mixture
from score_sde.errors import UserError
from score_sde.experiment import make_experiment
from score_sde.experiment.modes import MODES

CALLED = {
    "likelihood": "score_sde.evaluation.likelihood.likelihood",
    "certify": "score_sde.evaluation.solver_benchmark.certify",
}


@pytest.mark.parametrize("mode", CALLED)
def test_products_are_not_rounded_unless_asked_for(tmp_path, monkeypatch, mode):
    """By default they are computed in float32; a precision that the user has chosen is kept."""
    experiment, seen = make_experiment(mixture.get_config(), jax.devices()[:1]), []

    def record(*arguments):
        seen.append(jax.config.jax_default_matmul_precision)
        raise UserError("recorded")

    monkeypatch.setattr(CALLED[mode], record)
    for chosen in (None, "tensorfloat32"):
        with jax.default_matmul_precision(chosen), pytest.raises(UserError, match="recorded"):
            MODES[mode](experiment, tmp_path)
    assert seen == ["highest", "tensorfloat32"]
