"""NCSN++ with the VE SDE on CelebA at 64 x 64, on which Song et al. 2021 chose it (Appendix H.1); not run here.

    python launch.py --config=configs/ve_celeba64.py --config.data.path=DIR

DIR holds a folder of images for each split, `train/` and `test/`. They are cut to squares about their centre: score_sde
cuts to 140 pixels first, so cut them to those for its numbers.
"""

from configs.common_ncsnpp import Photographs, ncsnpp

MODEL = {"channels": 128, "multipliers": (1, 2, 2, 2), "num_res_blocks": 4, "dropout": 0.1}


def get_config():
    return ncsnpp(Photographs(64, 90.0, MODEL, 128, 1_300_000, 1000, 0.17, 0.999))
