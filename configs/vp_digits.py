"""VP SDE with a small DDPM++ on scikit-learn's handwritten digits (8x8): the demonstration, minutes on two CPU cores.

python launch.py --config=configs/vp_digits.py
"""

from configs import common


def get_config():
    config = common.digits()
    return config
