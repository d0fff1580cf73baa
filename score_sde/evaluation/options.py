"""Options of the evaluation modes; configs/common.py documents each option."""

from typing import NamedTuple


class EvaluationOptions(NamedTuple):
    """Options of evaluation: samples, real data, features, checkpoints."""

    num_samples: int
    num_real: int
    num_draws: int
    features: tuple[str, ...]
    inception: str
    dinov2: str
    steps: tuple[int, ...]
    every_checkpoint: bool
    ema_decays: tuple[float, ...]
    ema_lengths: tuple[float, ...]
    against: str
    neighbours: int
    neighbours_among: int
    health: bool
    health_levels: int
    health_images: int


class LikelihoodOptions(NamedTuple):
    """Options of the likelihood and its bounds."""

    t_min: float
    divergence: str
    num_probes: int
    rtol: float
    atol: float
    method: str
    max_steps: int
    num_draws: int
    importance: bool
    num_examples: int
    batch_size: int
    chain_steps: int


class BenchmarkOptions(NamedTuple):
    """Options of the solver benchmark."""

    num_samples: int
    nfe: tuple[int, ...]
    spacings: tuple[str, ...]
    reference_steps: int
    refinements: tuple[int, ...]
