"""Common settings of the experiments on ImageNet 64 x 64: the data and class-conditional ADM."""

from configs import common


def imagenet64():
    """Return a config with the data and the network."""
    config = common.default()
    config.data.name = "image_folder"
    config.data.image_size = 64
    config.data.channels = 3
    config.data.crop = True
    config.model.name = "adm"
    config.model.kwargs = {"num_classes": 1000, "dropout": 0.1}
    config.optimizer.learning_rate = 1e-4
    return config
