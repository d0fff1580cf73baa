"""Sub-VP SDE on the digits of configs/vp_digits.py (Song et al. 2021, Section 3.4).

python launch.py --config=configs/subvp_digits.py
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.digits()
    config.sde.name = "sub_vp"
    return config
