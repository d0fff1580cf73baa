"""Points of a plane in many dimensions, where the predictions of x0, epsilon and v differ (Li and He 2025).

python launch.py --config=configs/subspace.py
python launch.py --config=configs/subspace.py --workdir=runs/subspace_v --config.model.prediction=v

x0 lies in a plane, but epsilon and v have all 512 dimensions, more than the 256 units of a layer can pass on.
`--config.data.channels` sets the number of dimensions. `benchmarks/dimensions.py` measures the error of each
prediction. The weighting is that of the loss of v.
"""

import math

from configs import common

ANGLES = [2 * math.pi * k / 8 for k in range(8)]


def get_config():
    """Return the config."""
    config = common.toy()
    config.data.name = "subspace"
    config.data.channels = 512
    config.data.kwargs = {"means": tuple((math.cos(a), math.sin(a)) for a in ANGLES), "stds": (0.1,) * len(ANGLES)}
    config.model.name = "mlp"
    config.model.kwargs.features = (256,) * 5
    config.model.prediction = "x0"
    config.loss.weighting = "edm"
    config.loss.weighting_kwargs = {"sigma_data": 1.0}
    config.loss.time_sampler = "stratified"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.training.batch_size = 256
    config.training.num_steps = 5000
    config.training.steps_per_call = 50
    config.training.ema_decay = 0.998
    config.training.log_every = 500
    config.training.checkpoint_every = 5000
    config.training.sample_every = 5000
    config.sampling.solver = "ddim"
    config.sampling.num_steps = 100
    return config
