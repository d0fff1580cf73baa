"""MeanFlow on CIFAR-10 (Geng et al. 2025, Section 5 and Appendix A): FID 2.92 in one step, in their work; not run here.

python launch.py --config=configs/flow_map_cifar10.py --config.data.path=DIR
python launch.py --config=configs/flow_map_cifar10.py --config.data.path=DIR --mode=evaluate

Other results in one and two steps on CIFAR-10, in their authors' work: iCT 2.83 and 2.46 (Song and Dhariwal 2024), sCT
2.85 and 2.06 (Lu and Song 2025), ECT 3.60 and 2.11 (Geng et al. 2024). Three points differ from the paper: the network
predicts v of the chord pair (`preconditioning="angle"`), the loss is per angle, and r is uniform in the angle below t.
DIR: see configs/vp_cifar10.py.
"""

from configs.common_cifar10 import cifar10


def get_config():
    """Return the config."""
    config = cifar10("ddpmpp")
    config.data.random_flip = False
    config.data.augment = 0.12
    config.sde.name = "flow"
    config.model.preconditioning = "angle"
    config.model.kwargs.update(two_times=True, augment_dim=9, dropout=0.2)
    config.loss.objective = "eulerian"
    config.loss.objective_kwargs = {"diagonal": 0.25, "improved": False, "adaptive": 0.75}
    config.loss.time_sampler = "logit_normal"
    config.loss.time_sampler_kwargs = {"mean": -2.0, "std": 2.0}
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_steps = 10_000
    config.training.batch_size = 1024
    config.training.num_steps = 800_000
    config.training.ema_decay = 0.99995
    config.sampling.solver = "flow_map_steps"
    config.sampling.num_steps = 1
    config.sampling.denoise = False
    return config
