"""Noise-conditional classifier p_t(y | x) of the digits, for classifier guidance of configs/vp_digits.py.

python launch.py --config=configs/vp_digits_classifier.py
python launch.py --config=configs/vp_digits_classifier.py --mode=evaluate
python launch.py --config=configs/vp_digits_classifier.py --mode=export
python launch.py --config=configs/vp_digits.py --mode=sample
--config.sampling.guidance_weights=runs/vp_digits_classifier --config.sampling.guidance_scale=2.0

Dhariwal and Nichol 2021, Section 4: the encoder of a U-Net with attention pooling, trained on the same SDE.
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.digits()
    config.model.name = "classifier"
    config.model.kwargs = {
        "num_classes": -1,  # from the data
        "channels": 32,
        "multipliers": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "head_channels": 32,
        "dropout": 0.1,
    }
    config.loss.objective = "classification"
    config.optimizer.name = "adamw"
    config.optimizer.kwargs = {"weight_decay": 0.05}
    return config
