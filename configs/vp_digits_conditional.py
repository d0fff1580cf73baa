"""Class-conditional vp_digits with 10% label dropout, for classifier-free guidance.

python launch.py --config=configs/vp_digits_conditional.py
python launch.py --config=configs/vp_digits_conditional.py --mode=sample --config.sampling.guidance_scale=2.0
python launch.py --config=configs/vp_digits_conditional.py --mode=sample --config.sampling.label=3

Ho and Salimans 2021, "Classifier-Free Diffusion Guidance".
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.digits()
    config.model.kwargs.num_classes = -1  # from the data
    config.model.kwargs.label_dropout = 0.1
    config.training.num_steps = 3000
    return config
