"""NCSN++ with the VE SDE at 256 x 256: LSUN bedroom and church, CelebA-HQ, FFHQ (Song et al. 2021, Appendix H.2).

    python launch.py --config=configs/ve_256.py[:ffhq|celebahq|bedroom|church] --config.data.path=DIR

The paper shows samples but no FID; not run here. DIR holds a folder of images for each split, `train/` and `test/`. One
GPU of 16 GB needs --config.training.grad_accum_steps=32 --config.model.kwargs.remat=True (see benchmarks/results).
"""

from configs.common_ncsnpp import ncsnpp
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
    """Return the config."""
    sigma_max = lookup("variant", SIGMA_MAX, variant, "--config=FILE:VARIANT")
    return ncsnpp(
        image_size=256,
        sigma_max=sigma_max,
        model=MODEL,
        batch_size=64,
        num_steps=2_400_000,
        sampling_steps=2000,
        snr=0.075,
        ema_decay=0.999,
    )
