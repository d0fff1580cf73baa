"""ADM on ImageNet at 64 x 64, with classes: FID 2.07 in 250 steps (Dhariwal and Nichol 2021, Table 5); not run here.

    python launch.py --config=configs/adm_imagenet64.py --config.data.path=DIR

DIR holds `train/` and `test/`, each with a folder of images a class (`image_folder`). The cosine chain, and a learned
variance trained by the hybrid loss (Nichol and Dhariwal 2021).
"""

from configs import common


def imagenet64():
    config = common.default()
    config.data.name = "image_folder"
    config.data.image_size = 64
    config.data.channels = 3
    config.data.crop = True
    config.model.name = "adm"
    config.model.kwargs = {"num_classes": 1000, "dropout": 0.1}
    config.optimizer.learning_rate = 1e-4
    return config


def get_config():
    config = imagenet64()
    config.sde.name = "ddpm_cosine"
    config.model.kwargs.outputs = 2
    config.loss.objective = "ddpm_hybrid"
    config.optimizer.name = "adamw"
    config.optimizer.kwargs = {"weight_decay": 0.0}
    config.optimizer.warmup_steps = 0
    config.training.batch_size = 2048
    config.training.num_steps = 540_000
    config.sampling.solver = "ddim"
    config.sampling.kwargs = {"eta": 1.0}
    config.sampling.num_steps = 250
    return config
