"""Options of the evaluation modes; experiment/defaults.py documents each option."""

from typing import NamedTuple


class EvaluationOptions(NamedTuple):
    """Options of evaluation: samples, real data, features, checkpoints."""

    num_samples: int
    num_real: int
    num_repeats: int
    features: tuple[str, ...]
    inception: str
    dinov2: str
    steps: tuple[int, ...]
    every_checkpoint: bool
    ema_decays: tuple[float, ...]
    ema_lengths: tuple[float, ...]
    baseline: str
    num_neighbors: int
    neighbor_pool_size: int
    score_diagnostics: bool
    diagnostics_levels: int
    diagnostics_images: int
    losses_in_training: bool


class LikelihoodOptions(NamedTuple):
    """Options of the likelihood and its bounds."""

    t_min: float
    divergence: str
    num_probes: int
    rtol: float
    atol: float
    method: str
    max_steps: int
    num_dequantizations: int
    importance_weighted: bool
    num_examples: int
    batch_size: int
    vlb_num_steps: int
    flow_map_steps: int


class BenchmarkOptions(NamedTuple):
    """Options of the solver benchmark."""

    num_samples: int
    nfe: tuple[int, ...]
    spacings: tuple[str, ...]
    reference_steps: int
    sde_num_steps: tuple[int, ...]
