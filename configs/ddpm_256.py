"""Ho et al. 2020 at 256 x 256: LSUN bedroom FID 6.36, church 7.89, CelebA-HQ (Section 4.1, Table 3); not run here.

    python launch.py --config=configs/ddpm_256.py[:bedroom|church|celebahq] --config.data.path=DIR

DIR holds a folder of images for each split, `train/` and `test/` (`image_folder`). Images are cropped to squares.
"""

from configs import common
from score_sde.errors import lookup

STEPS = {"bedroom": 1_150_000, "church": 1_200_000, "celebahq": 500_000}  # Appendix B


def get_config(variant="bedroom"):
    """Return the config."""
    config = common.default()
    config.data.name = "image_folder"
    config.data.image_size = 256
    config.data.channels = 3
    config.data.crop = True
    config.data.random_flip = True
    config.sde.name = "ddpm_linear"
    config.model.name = "ddpm"
    config.model.kwargs = {
        "channels": 128,
        "multipliers": (1, 1, 2, 2, 4, 4),
        "num_res_blocks": 2,
        "attention_resolutions": (16,),
        "dropout": 0.0,
    }
    config.loss.objective = "ddpm"
    config.optimizer.learning_rate = 2e-5
    config.training.batch_size = 64
    config.training.num_steps = lookup("variant", STEPS, variant, "--config=FILE:VARIANT")
    config.sampling.solver = "ddim"
    config.sampling.num_steps = 999
    config.sampling.kwargs = {"eta": 1.0}
    config.sampling.num_samples = 16
    config.sampling.batch_size = 16
    return config
