"""Flow map distilled from the run of `configs/edm_fashion_mnist.py`: samples in 1, 2, 4 or 8 steps.

python launch.py --config=configs/edm_fashion_mnist.py --config.data.path=DIR
python launch.py --config=configs/edm_fashion_mnist.py --config.data.path=DIR --mode=export
python launch.py --config=configs/flow_map_fashion_mnist.py --config.data.path=DIR

DIR: see configs/vp_fashion_mnist.py. The run is the teacher, and its weights are the initial ones, as in
`configs/flow_map_digits_distill.py`. Sampling starts at sigma = 20, where the prior differs little from the noisy data.
In training log sigma is normal with a standard deviation of 2, which covers all noise levels.

Fréchet distance of 1,000 samples in the classifier's features, with `--mode=evaluate --config.evaluation.num_real=1000`
and `--config.sampling.num_steps=1` to 8: 0.319, 0.239, 0.222 and 0.220 in 1, 2, 4 and 8 steps. The teacher with 20
steps: 0.134; test images: 0.106. Training took 200 seconds on one H200 while other jobs ran. It was stopped at step
7,380 of 8,000; `--config.training.num_steps=7380` stops there, too.

Two CPU cores took 37 minutes for a shorter run, with 0.635, 0.500, 0.234 and 0.208: `--config.training.num_steps=1200
--config.training.batch_size=32 --config.optimizer.schedule_kwargs.decay_steps=1200 --config.training.sample_every=600
--config.training.checkpoint_every=200`.
"""

from configs import common, edm_fashion_mnist


def get_config():
    """Return the config."""
    config = common.distill(edm_fashion_mnist.get_config(), "runs/edm_fashion_mnist", num_steps=8000, t_max=20.0)
    config.loss.weighting = "simple"
    config.loss.time_sampler_kwargs = {"mean": 0.0, "std": 2.0, "stratified": True}
    config.optimizer.learning_rate = 5e-4
    config.training.batch_size = 128
    config.training.steps_per_call = 20
    config.training.log_every = 200
    config.training.checkpoint_every = 4000
    config.training.sample_every = 8000
    return config
