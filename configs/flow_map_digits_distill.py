"""Flow map distilled from the run of `configs/vp_digits.py`: samples in 1, 2, 4 or 8 steps.

python launch.py --config=configs/vp_digits.py
python launch.py --config=configs/vp_digits.py --mode=export
python launch.py --config=configs/flow_map_digits_distill.py

The run is the teacher, and its weights are the initial ones. The loss is that of Shortcut models (Frans et al. 2025),
which takes no derivative in time and so works with any noise level.
"""

from configs import common

TEACHER = "runs/vp_digits"


def get_config():
    """Return the config."""
    config = common.digits()
    config.model.pretrained = TEACHER
    config.model.kwargs.two_times = True
    config.loss.objective = "progressive"
    config.loss.objective_kwargs = {"teacher": TEACHER}
    config.training.num_steps = 4000
    config.sampling.solver = "flow_map_steps"
    config.sampling.num_steps = 4
    config.sampling.denoise = False
    return config
