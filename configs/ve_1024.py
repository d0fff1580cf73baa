"""NCSN++ with the VE SDE on FFHQ or CelebA-HQ at 1024 x 1024 (Song et al. 2021, Appendix H.3); not run here.

    python launch.py --config=configs/ve_1024.py --config.data.path=DIR

The paper shows samples but no FID. DIR holds a folder of images for each split, `train/` and `test/`.
"""

from configs.common_ncsnpp import ncsnpp

MODEL = {
    "channels": 16,
    "multipliers": (1, 2, 4, 8, 16, 32, 32, 32),
    "num_res_blocks": 1,
    "dropout": 0.0,
    "progressive_input": "input_skip",
    "progressive_output": "output_skip",
}


def get_config():
    """Return the config."""
    config = ncsnpp(
        image_size=1024,
        sigma_max=1348.0,
        model=MODEL,
        batch_size=8,
        num_steps=2_400_000,
        sampling_steps=2000,
        snr=0.15,
        ema_decay=0.9999,
    )
    config.sampling.num_samples = config.sampling.batch_size = 4
    return config
