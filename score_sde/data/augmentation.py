"""Non-leaking augmentation: the network is conditioned on the augmentation parameters, so that samples have none.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", Appendix F.2: an affine map of
the image about its center, composed of up to six random maps, and nine parameters that describe it. The parameters of
an unaugmented image are 0.
"""

import jax
import jax.numpy as jnp

AUGMENT_DIM = 9


def augment_each(keys: jax.Array, images: jax.Array, probability: float) -> tuple[jax.Array, jax.Array]:
    """Augment every image with its own key.

    Args:
      keys: PRNG keys, (n,).
      images: Images, (n, height, width, channels).
      probability: Probability of each augmentation except flips: horizontal ones use 1/2, vertical ones half of it.

    Returns:
      Augmented images and augmentation parameters (n, 9).
    """

    def augment(key, image):
        matrix, parameters = sample_affine(key, probability, image.shape[:2])
        return resample(image, matrix), parameters

    return jax.vmap(augment)(keys, images)


def sample_affine(key: jax.Array, probability: float, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Sample an affine map of an image about its center.

    Args:
      key: PRNG key.
      probability: See `augment_each`.
      shape: Height and width of the image, in pixels.

    Returns:
      Matrix (3, 3) from homogeneous coordinates (x, y, 1) in the augmented image to those in the given image, in pixels
      from the center. Augmentation parameters (9,): flip in x, flip in y, log2 of the scale over 0.2, cos - 1 and sin
      of the rotation angle, cos and sin of the direction of the stretch times its log2 over 0.2, shift in x and y over
      an eighth of the image.
    """
    apply_key, value_key = jax.random.split(key)
    chances = jnp.array([0.5, probability / 2, *[probability] * 4])
    flip_x, flip_y, scaled, rotated, stretched, shifted = jax.random.bernoulli(apply_key, chances).astype("float32")
    scale, stretch, *shift = jax.random.normal(value_key, (4,))
    angle, direction = jax.random.uniform(jax.random.fold_in(value_key, 1), (2,), minval=-jnp.pi, maxval=jnp.pi)
    direction = direction * jax.random.bernoulli(jax.random.fold_in(value_key, 2))  # half of them lie along an axis
    scale, stretch, angle = scale * scaled, stretch * stretched, angle * rotated
    shift = jnp.stack(shift) * shifted
    size = jnp.array(shape[::-1]) / 8
    squeeze = jnp.diag(jnp.array([1.0, 1.0, 1.0]).at[:2].set(2.0 ** (-0.2 * stretch * jnp.array([1.0, -1.0]))))
    matrix = (
        jnp.diag(jnp.stack([1 - 2 * flip_x, 1 - 2 * flip_y, jnp.ones(())]))
        @ jnp.diag(jnp.stack([2.0 ** (-0.2 * scale)] * 2 + [jnp.ones(())]))
        @ _rotation(angle)
        @ (_rotation(-direction) @ squeeze @ _rotation(direction) * stretched + jnp.eye(3) * (1 - stretched))
        @ jnp.eye(3).at[:2, 2].set(-shift * size)
    )
    parameters = [flip_x, flip_y, scale, jnp.cos(angle) - 1, jnp.sin(angle)]
    parameters += [stretch * jnp.cos(direction), stretch * jnp.sin(direction), *shift]
    return matrix, jnp.stack(parameters)


def _rotation(angle: jax.Array) -> jax.Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.eye(3).at[:2, :2].set(jnp.array([[cos, -sin], [sin, cos]]))


def resample(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Resample an image through an affine map, by cubic convolution (Keys 1981) and with reflected borders.

    Args:
      image: Image, (height, width, channels).
      matrix: Map from homogeneous coordinates (x, y, 1) in the result to those in the image, in pixels from the center,
        (3, 3).
    """
    height, width, _ = image.shape
    center = jnp.array([(width - 1) / 2, (height - 1) / 2])
    x, y = jnp.meshgrid(jnp.arange(width) - center[0], jnp.arange(height) - center[1])
    coordinates = jnp.einsum("ij,jhw->ihw", matrix, jnp.stack([x, y, jnp.ones_like(x)]), precision="highest")
    columns, column_weights = _cubic_taps(coordinates[0] + center[0], width)
    rows, row_weights = _cubic_taps(coordinates[1] + center[1], height)
    neighbors = image[rows[:, None], columns[None]]  # (4, 4, height, width, channels)
    return jnp.einsum("rhw,chw,rchwk->hwk", row_weights, column_weights, neighbors, precision="highest")


def _cubic_taps(coordinate: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Return the indices of the four pixels around each coordinate, reflected at the borders, and their weights."""
    coordinate = coordinate[None]
    below = jnp.floor(coordinate)
    offset = jnp.arange(-1, 3).reshape(4, 1, 1)
    distance = jnp.abs(coordinate - below - offset)
    near = 1 - distance**2 * (2.5 - 1.5 * distance)
    far = 2 - distance * (4 - distance * (2.5 - 0.5 * distance))
    index = jnp.mod(below.astype(int) + offset, max(2 * size - 2, 1))
    return jnp.minimum(index, jnp.abs(2 * size - 2 - index)), jnp.where(distance <= 1, near, far)
