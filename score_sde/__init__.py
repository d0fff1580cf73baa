"""Score-based generative modeling through stochastic differential equations.

Start reading at `sde.py`, then `parameterization.py`, then `solvers/`. `model.py` joins a network with its process,
`sampling.py` samples from it, and `experiment/` builds the parts of a run from a config for `launch.py`.
"""

from score_sde.ddpm import Schedule, cosine_schedule, linear_schedule
from score_sde.errors import UserError
from score_sde.guidance import autoguided, classifier_free, classifier_guided
from score_sde.likelihood import Likelihood, bits_per_dim, decode, encode, log_likelihood
from score_sde.model import DiffusionModel, NoisyClassifier
from score_sde.models import create
from score_sde.parameterization import Denoiser, Prediction, convert, make_denoiser, score_fn, to_prediction
from score_sde.sampling import Guidance, InverseTask, sample, sample_batches
from score_sde.score_matching import WEIGHTINGS, denoising, explicit, implicit, sliced
from score_sde.sde import (
    SDE,
    edm,
    flow,
    from_schedule,
    log_snr,
    perturb,
    prior_log_prob,
    prior_sample,
    probability_flow,
    reverse_sde,
    sub_vp,
    t_from_log_snr,
    ve,
    vp,
    vp_cosine,
)
from score_sde.solvers import SOLVERS, Solution, Solver, solve, solve_adaptive, time_grid

__all__ = [
    "SDE",
    "SOLVERS",
    "WEIGHTINGS",
    "Denoiser",
    "DiffusionModel",
    "Guidance",
    "InverseTask",
    "Likelihood",
    "NoisyClassifier",
    "Prediction",
    "Schedule",
    "Solution",
    "Solver",
    "UserError",
    "autoguided",
    "bits_per_dim",
    "classifier_free",
    "classifier_guided",
    "convert",
    "cosine_schedule",
    "create",
    "decode",
    "denoising",
    "edm",
    "encode",
    "explicit",
    "flow",
    "from_schedule",
    "implicit",
    "linear_schedule",
    "log_likelihood",
    "log_snr",
    "make_denoiser",
    "perturb",
    "prior_log_prob",
    "prior_sample",
    "probability_flow",
    "reverse_sde",
    "sample",
    "sample_batches",
    "score_fn",
    "sliced",
    "solve",
    "solve_adaptive",
    "sub_vp",
    "t_from_log_snr",
    "time_grid",
    "to_prediction",
    "ve",
    "vp",
    "vp_cosine",
]
