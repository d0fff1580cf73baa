"""What every experiment shares; a config states only what differs.

Every value can be overridden on the command line: `--config.optimizer.learning_rate=1e-4`. The groups named `kwargs`
are the keyword arguments of the function that `name` chooses (empty: its defaults): `--config.sde.kwargs.beta_max=10`.
"""

from ml_collections import ConfigDict


def default() -> ConfigDict:
    """The settings of Song et al. 2021 for the VP SDE, Appendix H, where a paper's value exists."""
    return ConfigDict(
        {
            "seed": 0,
            "data": {
                "name": "digits",
                "path": "",  # the folder of a data set that is not in its usual place
                "image_size": 8,
                "channels": 1,
                "random_flip": False,
            },
            "sde": {"name": "vp", "kwargs": {}},
            "model": {"name": "ddpmpp", "kwargs": {}, "prediction": "epsilon", "preconditioning": "none"},
            "loss": {
                "objective": "denoising",
                "weighting": "simple",
                "time_sampler": "uniform",
                "t_min": 1e-5,  # training times are drawn from [t_min, sde.t_max]
            },
            "optimizer": {
                "name": "adam",
                "learning_rate": 2e-4,
                "warmup_steps": 5000,  # linear, from 0
                "clip_norm": 1.0,  # of the gradient of the loss averaged over dimensions
                "kwargs": {},  # of the optax function
            },
            "training": {
                "batch_size": 128,  # global, whatever the number of devices
                "num_steps": 1_300_000,
                # Train steps scanned in one compiled call. On one device any value gives the same parameters, bit for
                # bit (tests/training/test_step.py); num_steps and the three *_every below must be multiples of it.
                "steps_per_call": 1,
                "ema_decay": 0.9999,
                "log_every": 100,
                "checkpoint_every": 10_000,
                "keep_checkpoints": 3,
                "sample_every": 50_000,
            },
            "sampling": {
                "solver": "euler_maruyama",
                "kwargs": {},
                "num_steps": 1000,
                "spacing": "uniform",
                "denoise": True,  # replace the last x by its denoised E[x0 | x]
                "num_samples": 64,
                "batch_size": 64,  # global; changes how fast samples come, not what they are
            },
            "evaluation": {
                "num_samples": 1000,
                "num_real": 10_000,  # real images of each split that are compared with, at most
            },
        }
    )
