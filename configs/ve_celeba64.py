"""NCSN++ with the VE SDE on CelebA 64 x 64 (Song et al. 2021, Appendix H.1); not run here.

    python launch.py --config=configs/ve_celeba64.py --config.data.path=DIR

The paper chose its architecture on this data set. DIR holds a folder of images for each split, `train/` and `test/`.
Images are center-cropped to squares. score_sde first crops to 140 pixels, so crop the images in advance to reproduce
its results.
"""

from configs.common_ncsnpp import ncsnpp

MODEL = {"channels": 128, "multipliers": (1, 2, 2, 2), "num_res_blocks": 4, "dropout": 0.1}


def get_config():
    """Return the config."""
    return ncsnpp(
        image_size=64,
        sigma_max=90.0,
        model=MODEL,
        batch_size=128,
        num_steps=1_300_000,
        sampling_steps=1000,
        snr=0.17,
        ema_decay=0.999,
    )
