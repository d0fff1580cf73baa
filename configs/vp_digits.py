"""VP SDE with a small DDPM++ on scikit-learn's handwritten digits (8x8): the demonstration, minutes on two CPU cores.

python launch.py --config=configs/vp_digits.py
"""

from configs import common


def get_config():
    config = common.default()
    config.model.kwargs = {
        "channels": 32,
        "multipliers": (1, 2),
        "num_res_blocks": 2,
        "attention_resolutions": (4,),
        "dropout": 0.0,
    }
    config.loss.time_sampler = "stratified"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.training.batch_size = 64
    config.training.num_steps = 1500
    config.training.steps_per_call = 10
    config.training.ema_decay = 0.998
    config.training.log_every = 50
    config.training.checkpoint_every = 250
    config.training.sample_every = 500
    config.sampling.solver = "ddim"
    config.sampling.num_steps = 50
    config.sampling.num_samples = 100
    config.sampling.batch_size = 100
    return config
