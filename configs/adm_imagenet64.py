"""Class-conditional ADM on ImageNet 64 x 64: FID 2.07 in 250 steps (Dhariwal and Nichol 2021, Table 5); not run here.

    python launch.py --config=configs/adm_imagenet64.py --config.data.path=DIR

DIR holds `train/` and `test/`, each with a folder of images per class (`image_folder`). The schedule is the
discrete-time cosine schedule. Ancestral sampling takes 250 steps with a variance learned by the hybrid loss (Nichol and
Dhariwal 2021, Section 4).
"""

from configs.common_imagenet64 import imagenet64


def get_config():
    """Return the config."""
    config = imagenet64()
    config.sde.name = "ddpm_cosine"
    config.model.kwargs.outputs = 2
    config.loss.objective = "ddpm_hybrid"
    config.optimizer.warmup_steps = 0
    config.training.batch_size = 2048
    config.training.num_steps = 540_000
    config.sampling.solver, config.sampling.kwargs = "ancestral", {}
    config.sampling.num_steps = 250
    return config
