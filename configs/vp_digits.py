"""VP SDE with a small DDPM++ on scikit-learn's handwritten digits (8 x 8), for two CPU cores.

python launch.py --config=configs/vp_digits.py
"""

from configs import common


def get_config():
    """Return the config."""
    return common.digits()
