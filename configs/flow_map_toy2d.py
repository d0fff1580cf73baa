"""Flow map of two-dimensional data, trained from scratch: samples in 1, 2, 4 or 8 steps.

python launch.py --config=configs/flow_map_toy2d.py
python launch.py --config=configs/flow_map_toy2d.py --mode=sample --config.sampling.num_steps=1
"""

from configs import mixture, toy2d


def get_config():
    """Return the config."""
    config = toy2d.get_config()
    config.data.name, config.data.kwargs = "mixture", dict(mixture.COMPONENTS)
    config.sde.name = "flow"
    config.model.preconditioning = "angle"
    config.model.kwargs = {"two_times": True}
    config.loss.objective = "eulerian"
    config.sampling.solver = "flow_map_steps"
    config.sampling.num_steps = 4
    config.sampling.denoise = False
    return config
