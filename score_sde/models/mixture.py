"""Exact network: the denoiser of a Gaussian mixture, without parameters.

Its inputs are x on the scale of a variance-preserving process, c x0 + s eps with c^2 + s^2 = 1, and the log-SNR
log(c^2 / s^2); the preconditioning "log_snr" provides both. Its output is v = c eps - s x0, which determines x0 and eps
at both ends of time. It therefore works with every SDE, and its results can be compared with closed forms.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_sde.errors import UserError


class Mixture(nn.Module):
    """Denoiser and log-density of the mixture sum_k w_k N(mean_k, std_k^2 I), in any dimension.

    Attributes:
      means: K component means, each flattened to the size of one example.
      stds: K standard deviations; 0 for a point mass.
      weights: K positive weights, normalized to sum 1; if empty, all weights are equal.
    """

    means: Sequence[Sequence[float]] = ((0.0, 0.0),)
    stds: Sequence[float] = (1.0,)
    weights: Sequence[float] = ()

    @nn.compact
    def __call__(self, x, noise_level, labels=None, train=False):
        """Return E[v | x], of the shape of x.

        Args:
          x: Points, (batch, *event).
          noise_level: Log-SNRs, (batch,).
          labels: Indices of components to condition on, (batch,), -1 for the whole mixture; None for -1.
          train: Unused.

        Raises:
          UserError: if means, stds and weights don't fit each other or x.
        """
        self._check(x)
        flat = x.reshape(x.shape[0], -1)
        log_weights, offset, variance, c, s = self._component_terms(flat, noise_level, labels)
        weighted_precision = jax.nn.softmax(log_weights, axis=1) / variance  # p(k | x) / variance_k
        stds = jnp.asarray(self.stds, x.dtype)[None]
        # Given x and k: x0 = mean + c std^2 (x - c mean) / variance, eps = s (x - c mean) / variance.
        x0 = jax.nn.softmax(log_weights, axis=1) @ jnp.asarray(self.means, x.dtype)
        x0 = x0 + jnp.sum((weighted_precision * c * stds**2)[..., None] * offset, axis=1)
        epsilon = jnp.sum((weighted_precision * s)[..., None] * offset, axis=1)
        return (c * epsilon - s * x0).reshape(x.shape)

    def log_prob(self, x, noise_level, labels=None):
        """Return the log-density of the marginal at x in nats, (batch,); noise_level +inf gives the data's."""
        self._check(x)
        return jax.nn.logsumexp(self._component_terms(x.reshape(x.shape[0], -1), noise_level, labels)[0], axis=1)

    def _component_terms(self, x, noise_level, labels):
        """Return log w_k p_k(x) (batch, K), x - c mean_k (batch, K, d), variances (batch, K), and c, s (batch, 1)."""
        c, s = (jnp.sqrt(jax.nn.sigmoid(level))[:, None] for level in (noise_level, -noise_level))
        means, stds = jnp.asarray(self.means, x.dtype), jnp.asarray(self.stds, x.dtype)
        weights = jnp.asarray(self.weights or [1.0] * len(self.stds), x.dtype)
        offset = x[:, None] - c[..., None] * means[None]
        variance = c**2 * stds[None] ** 2 + s**2
        log_weights = jnp.log(weights / jnp.sum(weights))[None]
        if labels is not None:
            selected = jnp.arange(len(self.stds))[None] == labels[:, None]
            log_weights = jnp.where(labels[:, None] < 0, log_weights, jnp.where(selected, 0.0, -jnp.inf))
        squares = jnp.sum(offset**2, axis=2) / variance
        return (
            log_weights - 0.5 * (squares + x.shape[1] * jnp.log(2 * jnp.pi * variance)),
            offset,
            variance,
            c,
            s,
        )

    def _check(self, x):
        """Raise UserError unless means, stds and weights fit each other and x."""
        dimension = x[0].size
        if len(self.means) != len(self.stds) or len(self.weights) not in (0, len(self.stds)) or not len(self.stds):
            raise UserError(
                "mixture: expected one mean, std and weight per component, or no weights, got "
                f"{len(self.means)} means, {len(self.stds)} stds and {len(self.weights)} weights"
            )
        if any(len(mean) != dimension for mean in self.means):
            raise UserError(
                f"mixture: expected means of {dimension} numbers, the size of an example, got "
                f"{[len(mean) for mean in self.means]}"
            )
        if min(self.stds) < 0 or any(weight <= 0 for weight in self.weights):
            raise UserError(
                f"mixture: expected stds >= 0 and weights > 0, got stds {list(self.stds)} and weights "
                f"{list(self.weights)}"
            )
