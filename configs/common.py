"""What every experiment shares; a config states only what differs.

Every value can be overridden on the command line: `--config.optimizer.learning_rate=1e-4`. What is named `kwargs`
are the keyword arguments of the function that `name` chooses (empty: its defaults): `--config.sde.kwargs.beta_max=10`,
`--config.loss.weighting_kwargs.gamma=3`.
"""

from ml_collections import ConfigDict


def default() -> ConfigDict:
    """The settings of Song et al. 2021 for the VP SDE, Appendix H, where a paper's value exists."""
    return ConfigDict(
        {
            "seed": 0,
            "data": {
                "name": "digits",
                "kwargs": {},  # of a toy: its shape
                "path": "",  # the folder of a data set that is not in its usual place
                "image_size": 8,  # height and width; 0: the data are not images but vectors of `channels` features
                "channels": 1,
                "random_flip": False,
                "dequantize": False,  # spread pixels evenly over their levels in training, for likelihoods
                "crop": False,  # cut images of another size to a square about their centre, and resize them
                "augment": 0.0,  # probability of EDM's augmentations, 0.12 for CIFAR-10; model.kwargs.augment_dim=9
                "num_threads": 2,  # that read ahead
                "num_workers": 0,  # processes that do it in their place, where decoding is slow
                "sigma_data": 0.5,  # the data's standard deviation, for edm's preconditioning and weighting
            },
            "sde": {"name": "vp", "kwargs": {}},
            "model": {
                "name": "ddpmpp",
                "kwargs": {},
                "prediction": "epsilon",
                "preconditioning": "none",
                "pretrained": "",  # weights that exist, in a file or folder; they decide the sde and all of the above
                "family": "",  # score_sde, edm, diffusers or native, where the weights don't say it themselves
            },
            "loss": {
                "objective": "denoising",
                "objective_kwargs": {},
                "weighting": "simple",
                "weighting_kwargs": {},
                "time_sampler": "uniform",
                "time_sampler_kwargs": {},
                "t_min": 1e-5,  # training times are drawn from [t_min, sde.t_max]
            },
            "optimizer": {
                "name": "adam",
                "learning_rate": 2e-4,
                "warmup_steps": 5000,  # linear, from 0
                "clip_norm": 1.0,  # of the gradient of the loss averaged over dimensions
                "kwargs": {},  # of the optax function
                "schedule": "constant",  # or cosine, linear (decay_steps), inverse_sqrt (reference_steps)
                "schedule_kwargs": {},
            },
            "training": {
                "batch_size": 128,  # global, whatever the number of devices
                "strategy": "pmap",  # the state on every device; fsdp: in shards
                "accumulate": 1,  # parts that a device's batch is worked through in, for memory
                "num_steps": 1_300_000,
                # Train steps scanned in one compiled call. On one device any value gives the same parameters, bit for
                # bit (tests/training/test_step.py); num_steps and the three *_every below must be multiples of it.
                "steps_per_call": 1,
                "ema_decay": 0.9999,
                "ema_decays": (),  # of further averages
                "ema_lengths": (),  # of EDM2's, shares of the run; (0.05, 0.1) give any other afterwards
                "snapshot_every": 10_000,  # steps between the stored averages that that takes
                "on_nonfinite": "stop",  # a NaN or infinite loss; skip: leave that step out, and count it
                "log_every": 100,
                "checkpoint_every": 10_000,
                "keep_checkpoints": 3,  # the last ones,
                "keep_every": 0,  # those of the multiples of so many steps, 0 for none,
                "keep_best": 0,  # and so many with the smallest loss since the one before
                "sample_every": 50_000,
            },
            "sampling": {
                "solver": "euler_maruyama",
                "kwargs": {},
                "num_steps": 1000,
                "spacing": "uniform",
                "spacing_kwargs": {},
                "end": "t_min",  # or "zero": the last step goes from t_min to 0, as Karras et al. 2022 do
                "threshold": "auto",  # of the predicted x0: none, clip, dynamic; auto: clip for a task, else none
                "threshold_kwargs": {},
                "off_grid": False,  # let a network that was trained at a chain's steps be asked between them
                "label": -1,  # the class of every sample, where any are known; -1: each in turn, of a task none
                "guidance_scale": 1.0,  # 0: unconditional, 1: the class alone, above: sharper
                "guidance_interval": (),  # (low, high) of sigma / alpha outside of which the scale is 1
                "guidance_rescale": 0.0,  # how far x0 is brought to the conditional one's contrast
                "guide": "",  # weights, or a run that exported some: a classifier, or a weaker network
                "guide_family": "",  # as model.family
                "task": "",  # inpaint, colorize, super_resolve, deblur or sdedit, of the first test images
                "task_kwargs": {},
                "task_noise": 0.0,  # standard deviation of the measurement; images are from -1 to 1
                "method": "pigdm",  # or replacement, repaint, dps, ddrm
                "method_kwargs": {},
                "completions": 4,  # samples an image
                "ema_decay": 0.0,  # one of training.ema_decays to take; 0: training.ema_decay
                "ema_length": 0.0,  # an average to put together from the stored ones and to take; 0: none
                "denoise": True,  # replace the last x by its denoised E[x0 | x]
                "num_samples": 64,
                "batch_size": 64,  # global; changes how fast samples come, not what they are
            },
            "evaluation": {
                "num_samples": 1000,
                "num_real": 50_000,  # real images of each split that are compared with, at most
                "num_draws": 1,  # sets of num_samples; their distances are given with mean, spread and minimum
                "features": (),  # of classifier, pixels, inception, dinov2; (): the first two, where the data allow it
                "inception": "",  # pytorch-fid's weights; "": their place in the cache
                "dinov2": "",  # its authors' weights, likewise
                "steps": (),  # checkpoints; (): the newest
                "every_checkpoint": False,  # all that are kept, in place of the newest
                "ema_decays": (),  # averages, each with each checkpoint; (): the one of config.sampling
                "ema_lengths": (),
                "against": "",  # a run's folder whose figures these are held against; of other data it is refused
                "neighbours": 8,  # samples that are shown beside their nearest training images; 0: none
                "neighbours_among": 10_000,  # the first training images
                "health": False,  # measure the network by noise level in place of samples
                "health_levels": 12,  # noise levels
                "health_images": 256,  # of the test split, at most
            },
            "likelihood": {
                "t_min": 0.0,  # where the flow starts; 0: the process's own. Below loss.t_min nothing was trained
                "divergence": "hutchinson",  # or "exact", as many derivatives as there are dimensions
                "num_probes": 1,
                "rtol": 1e-5,
                "atol": 1e-5,
                "method": "tsit5",
                "max_steps": 4096,
                "num_draws": 1,  # of the dequantization, averaged
                "importance": False,  # the tighter bound log mean p over the draws, in place of mean log p
                "num_examples": 10_000,  # of the test split, at most
                "batch_size": 128,  # global
                "chain_steps": 1000,  # of the discrete bound beside it; 0: none
            },
            "certify": {
                "num_samples": 16,
                "nfe": (5, 10, 20, 50, 100),  # budgets of the deterministic solvers
                "spacings": ("uniform", "quadratic", "karras", "log_snr"),
                "reference_steps": 250,  # of Runge-Kutta of order 4
                "refinements": (16, 32, 64, 128, 512),  # steps of the stochastic solvers; the last is held to be exact
            },
        }
    )


def digits() -> ConfigDict:
    """A small DDPM++ on scikit-learn's digits, trained in minutes on two CPU cores; each config adds its process."""
    config = default()
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


def toy() -> ConfigDict:
    """Two features in place of an image; enough samples to see a density."""
    config = default()
    config.data.image_size = 0
    config.data.channels = 2
    config.sampling.num_samples = 4000
    config.sampling.batch_size = 4000
    config.evaluation.num_samples = 4000
    return config
