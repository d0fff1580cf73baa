"""A small convolutional classifier for the comparison of samples, trained once per data set."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from score_sde.data import Dataset, batches, to_unit_range
from score_sde.data.hashing import hash_split
from score_sde.errors import UserError
from score_sde.models.layers import Conv, dense
from score_sde.runtime import distributed, weight_files
from score_sde.runtime.cache import cache_folder
from score_sde.runtime.disk import report
from score_sde.runtime.hashing import hash_json, hash_pytree
from score_sde.runtime.periodic import announcing

BATCH, STEPS, LEARNING_RATE = 128, 1000, 2e-3
STEPS_PER_CALL = 10  # steps of the compiled loop


class SmallClassifier(nn.Module):
    """A network from (batch, height, width, channels) images in [-1, 1] to 128 features and the logits of classes."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        """Return (features (batch, 128), logits (batch, num_classes))."""
        for i, (width, stride) in enumerate(((32, 1), (64, 2), (128, 2))):
            x = nn.swish(nn.GroupNorm(8, name=f"norm_{i}")(Conv(width, stride=stride, name=f"conv_{i}")(x)))
        features = jnp.mean(x, axis=(1, 2))
        return features, dense(self.num_classes, name="logits")(features)


class TrainedClassifier(NamedTuple):
    """A classifier trained on one data set.

    Attributes:
      module: Network.
      params: Parameters.
      fingerprint: Hash of the parameters; results of different classifiers are not comparable.
    """

    module: SmallClassifier
    params: Any
    fingerprint: str


def fit(source: Dataset, seed: int = 0) -> TrainedClassifier:
    """Train a classifier on a split with `STEPS` steps of Adam; the result depends on the data and the seed only.

    Raises:
      UserError: if the data are not images, or have no classes.
    """
    if len(source.image_shape) != 3 or source.num_classes < 2:
        raise UserError(
            f"classifier: expected images of several classes, got data of the shape {source.image_shape} with "
            f"{source.num_classes} class(es)"
        )
    module = SmallClassifier(source.num_classes)
    params = jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, *source.image_shape)))["params"]
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))

    def loss(params, batch):
        _, logits = module.apply({"params": params}, to_unit_range(batch["image"], source.levels))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry, calls: jax.lax.scan(step, carry, calls)[0])
    carry = (params, optimizer.init(params))
    stream = batches(source, seed, BATCH, STEPS_PER_CALL)
    for _ in range(STEPS // STEPS_PER_CALL):
        carry = run(carry, next(stream))
    return TrainedClassifier(module, carry[0], hash_pytree(carry[0]))


def load_or_fit(source: Dataset, data: Mapping[str, Any]) -> TrainedClassifier:
    """Return the classifier of a training split, trained by `fit` and cached on disk.

    Args:
      source: Training split.
      data: Config of the data.
    """
    name = hash_json(hash_split(source, data, "train"), BATCH, STEPS, LEARNING_RATE)
    path = cache_folder() / "classifiers" / f"{name}.safetensors"
    if path.is_file():
        try:
            params = weight_files.read_tree(path)
            return TrainedClassifier(SmallClassifier(source.num_classes), params, hash_pytree(params))
        except UserError as error:
            report(f"{error}; the classifier is trained again")
    trained = announcing(fit, "training the classifier")(source)
    if distributed.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        weight_files.write_tree(path, trained.params, "small_classifier", {})
    return trained
