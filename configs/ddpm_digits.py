"""Discrete-time DDPM (Ho et al. 2020) on the digits of configs/vp_digits.py, trained with L_simple at 1,000 timesteps.

python launch.py --config=configs/ddpm_digits.py

The network is not trained between its timesteps, so time grids are snapped to them. Solvers that evaluate it in between
raise an error unless `--config.sampling.allow_off_grid_times=True`. A learned variance (Nichol and Dhariwal 2021), for
ancestral sampling and the discrete variational bound:
`--config.loss.objective=ddpm_hybrid --config.model.kwargs.outputs=2`.
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.digits()
    config.sde.name = "ddpm_linear"
    config.loss.objective = "ddpm"
    config.sampling.solver, config.sampling.kwargs = "ancestral", {}
    config.sampling.num_steps = 200
    return config
