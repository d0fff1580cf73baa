"""Exponential moving averages (EMAs) of the parameters: with a constant decay, and power-function EMAs.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", Section 3: a power-function EMA
at step t weights the parameters of step u by u^gamma. Its relative length sigma_rel is the standard deviation of these
weights over t. Post-hoc EMA reconstructs any length after training, from stored EMAs of a few lengths.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_sde.errors import UserError

MAX_LENGTH = 0.28  # gamma = 0, which weights all steps equally, has the length 1 / sqrt(12) = 0.289


class EMAConfig(NamedTuple):
    """EMAs that a run keeps.

    Attributes:
      decay: Decay of the EMA that is sampled by default.
      decays: Decays of further EMAs.
      lengths: Relative lengths of power-function EMAs.
    """

    decay: float = 0.9999
    decays: tuple[float, ...] = ()
    lengths: tuple[float, ...] = ()


def check_ema_config(config: EMAConfig) -> EMAConfig:
    """Return the EMA settings.

    Raises:
      UserError: if a decay or length is out of range.
    """
    for name, decay in [("ema_decay", config.decay), *(("ema_decays", decay) for decay in config.decays)]:
        if not 0 <= decay < 1:
            raise UserError(f"EMA: expected 0 <= {name} < 1, got {decay}", name)
    for length in config.lengths:
        gamma_from_length(length, "ema_lengths")
    return config


def check_choice(config: EMAConfig, decay: float, length: float, argument: str = "ema_decay") -> None:
    """Raise UserError unless the run can provide the EMA.

    Args:
      config: EMAs of the run.
      decay: Decay of one of `config.decays`; 0 for none of them.
      length: Relative length of a post-hoc EMA; 0 for none.
      argument: Argument that held the decay.

    Raises:
      UserError: if the decay is not one of the run, the length is out of range, or both are chosen.
    """
    if decay and decay not in config.decays:
        known = ", ".join(map(str, config.decays)) or "none"
        raise UserError(
            f"EMA: no average of decay {decay} is kept besides training.ema_decay; ema_decays has {known}", argument
        )
    if length:
        gamma_from_length(length)
    if length and decay:
        raise UserError("EMA: expected one of ema_decay and ema_length, got both", "ema_decay", "ema_length")


def init_emas(config: EMAConfig, params: Any) -> dict[str, Any]:
    """Return the initial further EMAs, copies of the parameters, keyed by their index in the config."""
    names = [f"decay_{i}" for i in range(len(config.decays))] + [f"length_{i}" for i in range(len(config.lengths))]
    return {name: jax.tree.map(jnp.copy, params) for name in names}


def update(
    config: EMAConfig, emas: tuple[Any, dict[str, Any]], params: Any, step: jax.Array
) -> tuple[Any, dict[str, Any]]:
    """Return the EMAs after a step: the default one, and the further ones by name.

    Args:
      config: EMAs of the run.
      emas: EMAs before the step, in the same form.
      params: Parameters after the step.
      step: () number of steps finished before this one.
    """
    rates = {f"decay_{i}": constant_decay_rate(decay, step) for i, decay in enumerate(config.decays)}
    rates |= {
        f"length_{i}": power_function_rate(gamma_from_length(length), step) for i, length in enumerate(config.lengths)
    }
    default, others = emas
    updated = {name: optax.incremental_update(params, others[name], rate) for name, rate in rates.items()}
    return optax.incremental_update(params, default, constant_decay_rate(config.decay, step)), updated


def constant_decay_rate(decay: float, step: jax.Array) -> jax.Array:
    """Return the weight 1 - decay of the new parameters, with the decay warmed up as min(decay, (1 + n) / (10 + n))."""
    return 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def power_function_rate(gamma: float, step: jax.Array) -> jax.Array:
    """Return the weight of the new parameters at step t = step + 1 (Karras et al. 2024, Section 3.1).

    It is 1 - (1 - 1 / t)^(gamma + 1).
    """
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1.0 / (step + 1.0)))  # 1 at the first step, through log(0)


def gamma_from_length(length: float, argument: str = "ema_length") -> float:
    """Return gamma for a relative length sigma_rel (Karras et al. 2024, Algorithm 2).

    It is the largest root of (gamma + 2)^2 (gamma + 3) sigma_rel^2 = gamma + 1.

    Raises:
      UserError: if the length is out of range.
    """
    if not 0 < length <= MAX_LENGTH:
        raise UserError(
            f"EMA: expected a length, as a fraction of the run, of 0 < length <= {MAX_LENGTH}, got {length}", argument
        )
    t = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max())


def post_hoc_weights(steps: Sequence[int], lengths: Sequence[float], step: int, length: float) -> np.ndarray:
    """Return the weights x (n,) of stored EMAs whose sum is closest to an EMA of another length.

    This is Algorithm 3 of Karras et al. 2024. An EMA weights the parameters of time t by its profile p(t). For stored
    profiles p_i and the wanted profile p_r, x minimizes |sum_i x_i p_i - p_r|^2, by A x = b with A_ij = <p_i, p_j> and
    b_i = <p_i, p_r>. As in the authors' code, x is then divided by its sum, so that the EMA of constant parameters is
    those parameters.

    Args:
      steps: Step t_i of each stored EMA.
      lengths: Relative length of each stored EMA, which gives gamma_i.
      step: Step t_r of the reconstructed EMA, at least every t_i.
      length: Relative length of the reconstructed EMA, which gives gamma_r.
    """
    t_i, t_r = np.asarray(steps, np.float64) / step, 1.0
    gamma_i, gamma_r = np.array([gamma_from_length(each) for each in lengths]), gamma_from_length(length)
    a = p_dot_p(t_i[:, None], gamma_i[:, None], t_i, gamma_i)
    b = p_dot_p(t_i, gamma_i, t_r, gamma_r)
    x = np.linalg.lstsq(a, b, rcond=None)[0]  # A may be nearly singular
    return x / x.sum()


def p_dot_p(t_a: Any, gamma_a: Any, t_b: Any, gamma_b: Any) -> np.ndarray:
    """Return <p_a, p_b>, where p_a(t) = (gamma_a + 1) t^gamma_a / t_a^(gamma_a + 1) up to t_a, then 0."""
    t_min = np.minimum(t_a, t_b)
    power = (t_min / t_a) ** gamma_a * (t_min / t_b) ** gamma_b  # of ratios up to 1, which can't overflow
    return power * t_min / (t_a * t_b) * ((gamma_a + 1) * (gamma_b + 1)) / (gamma_a + gamma_b + 1)
