"""NCSN++ with the VE SDE at 256 x 256: LSUN bedroom and church, CelebA-HQ, FFHQ (Song et al. 2021, Appendix H.2).

    python launch.py --config=configs/ve_256.py[:ffhq|celebahq|bedroom|church] --config.data.path=DIR

The paper shows samples and gives no FID; not run here. DIR holds a folder of images for each split, `train/` and
`test/`. On one GPU of 16 GB: --config.training.accumulate=32 --config.model.kwargs.remat=True (in benchmarks/results).
"""

from configs.common_ncsnpp import Photographs, ncsnpp
from score_sde.errors import lookup

SIGMA_MAX = {"ffhq": 348.0, "celebahq": 348.0, "bedroom": 378.0, "church": 380.0}
MODEL = {
    "channels": 128,
    "multipliers": (1, 1, 2, 2, 2, 2, 2),
    "num_res_blocks": 2,
    "dropout": 0.0,
    "progressive_input": "input_skip",
    "progressive_output": "output_skip",
}


def get_config(variant="ffhq"):
    sigma_max = lookup("variant", SIGMA_MAX, variant, "what follows the colon of --config")
    return ncsnpp(Photographs(256, sigma_max, MODEL, 64, 2_400_000, 2000, 0.075, 0.999))
