"""The discrete chain of Ho et al. 2020 on the digits of configs/vp_digits.py: L_simple at 1,000 steps, sampled at some.

python launch.py --config=configs/ddpm_digits.py

The network knows no time between two steps: a grid is moved to steps of the chain, and a solver that evaluates it
between them is refused, unless `--config.sampling.off_grid=True`. With a learned variance, which ancestral sampling and
the discrete bound then use (Nichol and Dhariwal 2021): `--config.loss.objective=ddpm_hybrid
--config.model.kwargs.outputs=2`.
"""

from configs import common


def get_config():
    config = common.digits()
    config.sde.name = "ddpm_linear"
    config.loss.objective = "ddpm"
    config.sampling.solver, config.sampling.kwargs = "ancestral", {}
    config.sampling.num_steps = 200
    return config
