"""Settings that configs share; `default()` is the documented list of keys, score_sde/experiment/defaults.py."""

from ml_collections import ConfigDict

from score_sde.experiment.defaults import default

__all__ = ["default", "digits", "distill", "fashion_mnist", "toy"]


def digits() -> ConfigDict:
    """Return a config for a small DDPM++ on scikit-learn's digits, which trains in minutes on two CPU cores."""
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


def fashion_mnist() -> ConfigDict:
    """Return the settings that the configs of Fashion-MNIST (28 x 28) share."""
    config = default()
    config.data.name = "fashion_mnist"
    config.data.image_size = 28
    config.data.channels = 1
    config.data.sigma_data = 0.7
    config.model.preconditioning = "edm"
    config.loss.time_sampler_kwargs = {"stratified": True}
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.training.batch_size = 32
    config.training.num_steps = 12_000
    config.training.ema_decay = 0.998
    config.training.log_every = 100
    config.training.checkpoint_every = 500
    config.training.sample_every = 3000
    config.sampling.solver = "dpm_solver_pp"
    config.sampling.num_steps = 20
    return config


def distill(config: ConfigDict, teacher: str, num_steps: int, t_max: float) -> ConfigDict:
    """Return the config of a run, changed to that of a flow map which is distilled from it.

    Args:
      config: Config of the teacher.
      teacher: Folder of the teacher's run, whose weights are the initial ones.
      num_steps: Number of train steps.
      t_max: Time at which sampling starts.
    """
    config.model.pretrained = teacher
    config.model.kwargs.two_times = True
    config.loss.objective = "progressive"
    config.loss.objective_kwargs = {"teacher": teacher}
    config.optimizer.schedule = "cosine"
    config.optimizer.schedule_kwargs = {"decay_steps": num_steps}
    config.training.num_steps = num_steps
    config.sampling.solver = "flow_map_steps"
    config.sampling.num_steps = 4
    config.sampling.t_max = t_max
    config.sampling.denoise = False
    return config


def toy() -> ConfigDict:
    """Return a config for two-dimensional data, with enough samples to show a density."""
    config = default()
    config.data.image_size = 0
    config.data.channels = 2
    config.sampling.num_samples = 4000
    config.sampling.batch_size = 4000
    config.evaluation.num_samples = 4000
    return config
