"""VP SDE with DDPM++ on CIFAR-10: FID 2.55 in the paper (Song et al. 2021, Table 3, "DDPM++ cont. (VP)"); not run here.

    python launch.py --config=configs/vp_cifar10.py --config.data.path=DIR

DIR holds `cifar10/`, prepared once by `tfds build cifar10 --file_format=array_record --data_dir=DIR`.
"""

from configs import common


def get_config():
    config = common.default()
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.random_flip = True
    config.model.kwargs = {
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "num_res_blocks": 4,
        "attention_resolutions": (16,),
        "dropout": 0.1,
    }
    return config
