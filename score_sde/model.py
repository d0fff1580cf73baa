"""A diffusion model: a network with the process and the parameterization that it is trained for."""

from functools import wraps
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_sde import ddpm
from score_sde.conditioned import Conditioned
from score_sde.errors import UserError
from score_sde.guidance import check_classes
from score_sde.models.mixture import Mixture
from score_sde.models.network import apply_fn
from score_sde.parameterization import (
    Denoiser,
    check_parameterization,
    make_denoiser,
    round_trip_prediction,
    scaled_network,
)
from score_sde.sde import SDE

T = TypeVar("T")


def _checks_module(cls: type[T]) -> type[T]:
    """Check the module at the construction of a NamedTuple, which can't define its own `__new__`."""
    new = cls.__new__

    @wraps(new)
    def checked(cls, module, *args, **kwargs):
        if not isinstance(module, nn.Module):
            kind = type(module)
            raise UserError(
                f"{cls.__name__}: expected an instance of flax.linen.Module, got {kind.__module__}.{kind.__name__}; a "
                "module class of flax.nnx becomes one with flax.nnx.bridge.ToLinen(Class, args=..., kwargs=...)"
            )
        return new(cls, module, *args, **kwargs)  # type: ignore[call-arg]

    cls.__new__ = checked  # type: ignore[method-assign, assignment]
    return cls


@_checks_module
class DiffusionModel(NamedTuple):
    """A network with the process and parameterization that define its output.

    Attributes:
      module: Flax Linen module, called as `module.apply(variables, x, noise_level, labels=None, train=False)`. Wrap a
        class of `flax.nnx` with `flax.nnx.bridge.ToLinen(Class, args=..., kwargs=...)`; its `__call__` takes the same
        arguments, and its parameters are created from `rngs`.
      sde: Forward process.
      event_shape: Shape of one example.
      prediction: Output of the network, a key of `parameterization.PREDICTIONS`.
      preconditioning: Scaling of its input and output, a key of `parameterization.PRECONDITIONINGS`.
      sigma_data: Standard deviation of the data, for the preconditioning "edm".
      timesteps: Noise schedule of a network of discrete time, which can't be evaluated between its timesteps; None for
        a network of continuous time.
      learned_variance: Whether the output has twice the channels of x, the second half for the reverse variance
        (`parameterization.VariancePrediction`).
    """

    module: nn.Module
    sde: SDE
    event_shape: tuple[int, ...]
    prediction: str = "epsilon"
    preconditioning: str = "none"
    sigma_data: float = 0.5
    timesteps: ddpm.Schedule | None = None
    learned_variance: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes the network is conditioned on; 0 for an unconditional network."""
        return getattr(self.module, "num_classes", 0)

    @property
    def has_null_label(self) -> bool:
        """Whether labels were dropped in training, so that the label -1 gives the unconditional prediction."""
        return self.num_classes > 0 and getattr(self.module, "label_dropout", 0.0) > 0

    @property
    def learned_divergence(self) -> bool:
        """Whether the network is a flow map with the mean divergence as its second output (`flow_map`)."""
        return getattr(self.module, "two_times", False) and getattr(self.module, "outputs", 1) == 2

    @property
    def is_exact(self) -> bool:
        """Whether the module is the exact denoiser of a mixture, which has no parameters and takes the log-SNR."""
        return isinstance(self.module, Mixture)

    def init(self, key: jax.Array) -> Any:
        """Return initial parameters."""
        return _init(self.module, self.event_shape, key)

    def denoiser(
        self,
        params: Any,
        *,
        labels: jax.Array | None = None,
        augment: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
    ) -> Denoiser:
        """Return the denoiser (x, t) -> Prediction for x (batch, *event) and t () or (batch,).

        Args:
          params: Parameters of the network.
          labels: (batch,) classes, -1 for none; None evaluates without labels.
          augment: (batch, augment_dim) augmentation labels.
          dropout_keys: (batch,) keys, one per example; with them the network is evaluated in training mode.
        """
        if labels is not None and self.num_classes:
            check_classes(labels, self.num_classes)
        output = apply_fn(self.module, params, dropout_keys, labels=labels, augment=augment)
        if self.is_exact:
            return round_trip_prediction(
                make_denoiser(output, self.sde, preconditioning="log_snr"), self.sde, self.prediction
            )
        return make_denoiser(
            output,
            self.sde,
            self.prediction,
            self.preconditioning,
            self.sigma_data,
            self.learned_variance,
            self.learned_divergence,
        )

    def check(self) -> None:
        """Raise UserError unless prediction and preconditioning work with the process."""
        check_parameterization(self.sde, self.prediction, "none" if self.is_exact else self.preconditioning)


def check_continuous_time(model: DiffusionModel, purpose: str) -> None:
    """Raise UserError if a model is of discrete time, for a purpose that evaluates it between its timesteps."""
    if model.timesteps is not None:
        raise UserError(
            f"{purpose} evaluates the network at any time, and this one was trained at the timesteps of a chain only",
            "allow_off_grid_times=True if it may be evaluated between them",
        )


@_checks_module
class NoisyClassifier(NamedTuple):
    """A classifier p_t(y | x_t) of noisy examples (Dhariwal and Nichol 2021, Section 4); see `DiffusionModel`."""

    module: nn.Module
    sde: SDE
    event_shape: tuple[int, ...]
    preconditioning: str = "none"
    sigma_data: float = 0.5

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.module.num_classes

    def init(self, key: jax.Array) -> Any:
        """Return initial parameters."""
        return _init(self.module, self.event_shape, key)

    def logits(self, params: Any, *, dropout_keys: jax.Array | None = None) -> Conditioned:
        """Return the function (x, t) -> (batch, num_classes) logits."""
        output = apply_fn(self.module, params, dropout_keys)
        return scaled_network(output, self.sde, self.preconditioning, self.sigma_data)

    def check(self) -> None:
        """Raise UserError unless the preconditioning works with the process."""
        # A classifier has no prediction, so a prediction that is always valid is passed. Only the noise level of the
        # preconditioning is checked, since log(sigma / alpha) is infinite where alpha = 0.
        scaled = self.preconditioning not in ("none", "log_sigma")
        check_parameterization(self.sde, "epsilon" if scaled else "v", self.preconditioning)


def _init(module: nn.Module, event_shape: tuple[int, ...], key: jax.Array) -> Any:
    # Compiled, so that the forward pass is dropped: no parameter depends on it.
    init = jax.jit(lambda key: module.init(key, jnp.zeros((1, *event_shape)), jnp.zeros((1,))))
    return init(key).get("params", {})
