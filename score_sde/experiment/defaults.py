"""Defaults of all experiments, and the documented list of config keys; a config states only its differences.

Every value can be overridden on the command line: `--config.optimizer.learning_rate=1e-4`. The keys named `kwargs` hold
keyword arguments of the function that `name` selects; an empty value takes the function's defaults. Examples:
`--config.sde.kwargs.beta_max=10`, `--config.loss.weighting_kwargs.gamma=3`.
"""

from ml_collections import ConfigDict


def default() -> ConfigDict:
    """Return the default config, with the values of Song et al. 2021, Appendix H, for the VP SDE where given."""
    return ConfigDict(
        {
            "seed": 0,  # seed of initialization, training and sampling
            "data": {
                "name": "digits",  # name of the data set
                "kwargs": {},  # arguments of the data set
                "path": "",  # folder of the data set; "": its default folder
                "image_size": 8,  # height and width; 0: the data are vectors of `channels` features
                "channels": 1,  # channels of the images, or features of vectors
                "random_flip": False,  # flip training images horizontally at random
                "dequantize": False,  # add uniform noise to the pixel levels in training, for likelihoods
                "crop": False,  # center-crop images of another size to a square and resize them
                "augment": 0.0,  # probability of EDM's augmentations, 0.12 for CIFAR-10; set model.kwargs.augment_dim=9
                "num_threads": 2,  # threads that prefetch
                "num_workers": 0,  # processes that load instead of the threads, for slow decoding; 0: none
                "standardize": False,  # subtract the mean of real numbers and divide by their standard deviation
                "mean": (),  # of each feature; (): from the training data, with standardize
                "std": (),  # of each feature, as mean
                "sigma_data": 0.5,  # standard deviation of the data, for the preconditioning and weighting of EDM
            },
            "sde": {
                "name": "vp",  # name of the process
                "kwargs": {},  # arguments of the process
            },
            "model": {
                "name": "ddpmpp",  # name of the network
                "kwargs": {},  # arguments of the network; num_classes=-1: the number of classes of the data
                "prediction": "epsilon",  # quantity that the network predicts
                "preconditioning": "none",  # scaling of input and output; all but none and log_sigma set the prediction
                "pretrained": "",  # path to pretrained weights; overrides sde and model above
                "family": "",  # score_sde, edm, diffusers or native, if the weights have no metadata
            },
            "loss": {
                "objective": "denoising",  # training objective
                "objective_kwargs": {},  # arguments of the objective
                "weighting": "simple",  # weighting of the loss over noise levels
                "weighting_kwargs": {},  # arguments of the weighting
                "uncertainty": False,  # learn the loss as a function of the noise level, and divide by it
                "time_sampler": "uniform",  # distribution of the training times
                "time_sampler_kwargs": {},  # arguments of the time sampler
                "t_min": 1e-5,  # training times are sampled from [t_min, sde.t_max]
            },
            "optimizer": {
                "name": "adam",  # name of the Optax optimizer
                "learning_rate": 2e-4,  # peak learning rate, after the warm-up
                "warmup_steps": 5000,  # linear warm-up from 0
                "clip_norm": 1.0,  # largest norm of the gradient; the loss is a mean over dimensions
                "kwargs": {},  # keyword arguments of the Optax function
                "schedule": "constant",  # or cosine, linear (decay_steps), inverse_sqrt (reference_steps)
                "schedule_kwargs": {},  # arguments of the schedule; {}: it decays from the warm-up to the end
            },
            "training": {
                "batch_size": 128,  # global, over all devices
                "strategy": "pmap",  # pmap replicates the state on every device; fsdp shards it
                "grad_accum_steps": 1,  # gradient accumulation steps
                "num_steps": 1_300_000,  # number of train steps
                # Train steps per compiled call (a scan). On one device every value gives the same parameters, bit for
                # bit (tests/training/test_step.py). It must divide num_steps and the intervals *_every below.
                "steps_per_call": 1,
                "ema_decay": 0.9999,  # decay of the EMA that is used for sampling
                "ema_decays": (),  # decays of additional EMAs
                "ema_lengths": (),  # relative lengths of EDM2's EMAs; (0.05, 0.1) allow post-hoc EMA of any length
                "snapshot_every": 10_000,  # interval between EMA snapshots for post-hoc EMA
                "on_nonfinite": "stop",  # at a NaN or infinite loss; skip: skip that step and count it
                "log_every": 100,  # interval between logs, in steps
                "checkpoint_every": 10_000,  # interval between checkpoints, in steps
                "keep_checkpoints": 3,  # number of newest checkpoints to keep
                "keep_every": 0,  # also keep those at multiples of this many steps; 0: none
                "keep_best": 0,  # also keep this many with the smallest mean loss since the previous checkpoint
                "sample_every": 50_000,  # interval between sample grids, in steps
            },
            "sampling": {
                "solver": "euler_maruyama",  # name of the solver
                "kwargs": {},  # arguments of the solver
                "num_steps": 1000,  # number of solver steps; unused by adaptive solvers
                "spacing": "uniform",  # spacing of the time grid
                "spacing_kwargs": {},  # arguments of the spacing
                "t_max": 0.0,  # first time of sampling, at a log-SNR of at most -3; 0: t_max of the SDE
                "end": "t_min",  # or "zero": the last step goes from t_min to 0 (Karras et al. 2022)
                "threshold": "auto",  # bound of x0: none, clip or dynamic; auto: clip for tasks, otherwise none
                "threshold_kwargs": {},  # arguments of the threshold
                "allow_off_grid_times": False,  # allow evaluating a discrete-time network between its timesteps
                "label": -1,  # class of every sample; -1: cycle through the classes, or no class for a task
                "guidance_scale": 1.0,  # 0: unconditional, 1: conditional without guidance, above 1: sharper
                "guidance_interval": (),  # (low, high) of sigma / alpha with guidance; the scale is 1 outside
                "guidance_rescale": 0.0,  # from 0 to 1: rescale x0 to the contrast of the conditional prediction
                "guidance_weights": "",  # a classifier or a weaker network: a file, or a run that exported it
                "guidance_family": "",  # see model.family
                "particles": 1,  # weighted particles per sample; several make guidance and "twisted" exact
                "task": "",  # inpaint, colorize, super_resolve, deblur or sdedit, on the first test images
                "task_kwargs": {},  # arguments of the task
                "task_noise": 0.0,  # standard deviation of the measurement noise; images lie in [-1, 1]
                "method": "pigdm",  # or replacement, repaint, dps, ddrm, or twisted, with weighted particles
                "method_kwargs": {},  # arguments of the method
                "samples_per_measurement": 4,  # samples per measurement
                "ema_decay": 0.0,  # decay of the EMA to sample from, one of training.ema_decays; 0: training.ema_decay
                "ema_length": 0.0,  # length of a post-hoc EMA to sample from; 0: none
                "denoise": True,  # return E[x0 | x] of the last x
                "num_samples": 64,  # number of samples
                "batch_size": 64,  # global; affects the speed, not the samples
            },
            "evaluation": {
                "num_samples": 1000,  # number of samples per set
                "num_real": 50_000,  # maximum number of real images per split
                "num_repeats": 1,  # sets of num_samples; distances are reported with mean, spread and minimum
                "features": (),  # any of classifier, pixels, inception, dinov2; (): the first two, if possible
                "inception": "",  # path to the weights of pytorch-fid; "": in the cache
                "dinov2": "",  # path to the weights of its authors; "": in the cache
                "steps": (),  # steps of the checkpoints; (): only the newest
                "every_checkpoint": False,  # evaluate all checkpoints instead
                "ema_decays": (),  # EMAs to evaluate at each checkpoint; (): the EMA of config.sampling
                "ema_lengths": (),  # post-hoc EMAs to evaluate at each checkpoint
                "baseline": "",  # folder of a baseline run on the same data
                "num_neighbors": 8,  # samples to plot with their nearest training images; 0: none
                "neighbor_pool_size": 10_000,  # training images to search for neighbors and copies, from the first
                "score_diagnostics": False,  # score diagnostics per noise level instead of sample metrics
                "diagnostics_levels": 12,  # number of noise levels, also of the losses
                "diagnostics_images": 256,  # maximum number of images per split, also of the losses
                "losses_in_training": False,  # measure the losses on both splits at each sample grid of a training
            },
            "likelihood": {
                "t_min": 0.0,  # start of the flow; 0: t_min of the SDE. The network is untrained below loss.t_min
                "divergence": "hutchinson",  # or "exact", with one derivative per dimension
                "num_probes": 1,  # Hutchinson probes per example
                "rtol": 1e-5,  # relative tolerance of the solve
                "atol": 1e-5,  # absolute tolerance of the solve
                "method": "tsit5",  # Runge-Kutta method of Diffrax
                "max_steps": 4096,  # maximum number of steps of the solve
                "num_dequantizations": 1,  # dequantizations per example, averaged
                "importance_weighted": False,  # log mean p instead of mean log p over dequantizations: tighter
                "num_examples": 10_000,  # maximum number of test examples
                "batch_size": 128,  # global
                "vlb_num_steps": 1000,  # timesteps of the discrete variational bound; 0: no bound
                "flow_map_steps": 0,  # jumps of a flow map that replace the integral; 0: the integral
            },
            "certify": {
                "num_samples": 16,  # number of samples per solver
                "nfe": (5, 10, 20, 50, 100),  # evaluation budgets of the deterministic solvers
                "spacings": ("uniform", "quadratic", "karras", "log_snr"),  # time grids to compare
                "reference_steps": 250,  # steps of the reference solution, by Runge-Kutta of order 4
                "sde_num_steps": (16, 32, 64, 128, 512),  # steps of the stochastic solvers; the last is the reference
            },
        }
    )
