"""Score-based generative modelling through stochastic differential equations.

Start reading at `sde.py`, then `parameterization.py`, then `solvers/`. `experiment.py` puts a run together from a
config; `launch.py`, beside this package, is its command line.
"""
