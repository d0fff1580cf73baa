"""A small convolutional classifier, in whose features samples are compared: trained once a data set, no download."""

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

BATCH, STEPS, LEARNING_RATE = 128, 1000, 2e-3
CALL = 10  # steps compiled as one


class SmallClassifier(nn.Module):
    """(batch, height, width, channels) images in [-1, 1] to 128 features and the logits of classes."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        """Returns (features (batch, 128), logits (batch, num_classes))."""
        for i, (width, stride) in enumerate(((32, 1), (64, 2), (128, 2))):
            x = nn.swish(nn.GroupNorm(8, name=f"norm_{i}")(Conv(width, stride=stride, name=f"conv_{i}")(x)))
        features = jnp.mean(x, axis=(1, 2))
        return features, dense(self.num_classes, name="logits")(features)


class Fitted(NamedTuple):
    """A classifier of one data set."""

    module: SmallClassifier
    params: Any
    fingerprint: str  # of its parameters: figures of two fingerprints are not comparable


def fit(source: Dataset, seed: int = 0) -> Fitted:
    """Trains a classifier on a split, `STEPS` steps of Adam; a function of the data and the seed.

    Raises:
      UserError: the data are not images, or have no classes.
    """
    if len(source.image_shape) != 3 or source.num_classes < 2:
        raise UserError(
            f"a classifier is trained on images of several classes, not on data of the shape {source.image_shape} of "
            f"{source.num_classes} class(es)"
        )
    module = SmallClassifier(source.num_classes)
    params = jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, *source.image_shape)))["params"]
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))

    def loss(params, batch):
        _, logits = module.apply({"params": params}, to_unit_range(batch["image"], source.levels))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))

    def step(carried, batch):
        params, state = carried
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carried, calls: jax.lax.scan(step, carried, calls)[0])
    carried = (params, optimizer.init(params))
    stream = batches(source, seed, BATCH, CALL)
    for _ in range(STEPS // CALL):
        carried = run(carried, next(stream))
    return Fitted(module, carried[0], hash_pytree(carried[0]))


def fitted(source: Dataset, data: Mapping[str, Any]) -> Fitted:
    """`fit` of a training split, kept on disk, in `cache_folder()`, for the next call.

    Args:
      source: the training split.
      data: config.data.
    """
    name = hash_json(hash_split(source, data, "train"), BATCH, STEPS, LEARNING_RATE)
    path = cache_folder() / "classifiers" / f"{name}.safetensors"
    if path.is_file():
        try:
            params = weight_files.read_tree(path)
            return Fitted(SmallClassifier(source.num_classes), params, hash_pytree(params))
        except UserError as error:
            report(f"{error}; the classifier is trained again")
    made = fit(source)
    if distributed.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        weight_files.write_tree(path, made.params, "small_classifier", {})
    return made
