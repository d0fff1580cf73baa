"""What the experiments on ImageNet at 64 x 64 share: the data, and ADM with its classes."""

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
