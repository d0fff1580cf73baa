"""EDM's augmentations, of which the network is told so that they don't leak into what it draws.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", Appendix F.2: one affine map of
the image about its centre, made of up to six random ones, and nine numbers that say what was done, all 0 for nothing.
"""

import jax
import jax.numpy as jnp

AUGMENT_DIM = 9


def augment_each(keys: jax.Array, images: jax.Array, probability: float) -> tuple[jax.Array, jax.Array]:
    """Augments every image with its own key.

    Args:
      keys: (n,).
      images: (n, height, width, channels).
      probability: of each augmentation, but for the mirroring, which has 1/2.

    Returns:
      (images, what was done (n, 9)).
    """

    def one(key, image):
        matrix, done = draw_map(key, probability, image.shape[:2])
        return resample(image, matrix), done

    return jax.vmap(one)(keys, images)


def draw_map(key: jax.Array, probability: float, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """A random affine map.

    Args:
      key: of the draw.
      probability: of each part.
      shape: the image's height and width; the map is about its centre, in pixels, (x, y, 1).

    Returns:
      (matrix (3, 3) from a place in the augmented image to that in the given one,
      (9,): mirrored in x, in y; log2 of the scale over 0.2; cos - 1 and sin of the angle; log2 of the stretch over 0.2
      times cos and sin of its direction; the shift in x and y over an eighth of the image).
    """
    apply_key, value_key = jax.random.split(key)
    chances = jnp.array([0.5, probability / 2, *[probability] * 4])
    mirror_x, mirror_y, scaled, turned, stretched, shifted = jax.random.bernoulli(apply_key, chances).astype("float32")
    scale, stretch, *shift = jax.random.normal(value_key, (4,))
    angle, direction = jax.random.uniform(jax.random.fold_in(value_key, 1), (2,), minval=-jnp.pi, maxval=jnp.pi)
    direction = direction * jax.random.bernoulli(jax.random.fold_in(value_key, 2))  # along an axis as often as not
    scale, stretch, angle = scale * scaled, stretch * stretched, angle * turned
    shift = jnp.stack(shift) * shifted
    size = jnp.array(shape[::-1]) / 8
    squeeze = jnp.diag(jnp.array([1.0, 1.0, 1.0]).at[:2].set(2.0 ** (-0.2 * stretch * jnp.array([1.0, -1.0]))))
    matrix = (
        jnp.diag(jnp.stack([1 - 2 * mirror_x, 1 - 2 * mirror_y, jnp.ones(())]))
        @ jnp.diag(jnp.stack([2.0 ** (-0.2 * scale)] * 2 + [jnp.ones(())]))
        @ _rotation(angle)
        @ (_rotation(-direction) @ squeeze @ _rotation(direction) * stretched + jnp.eye(3) * (1 - stretched))
        @ jnp.eye(3).at[:2, 2].set(-shift * size)
    )
    done = [mirror_x, mirror_y, scale, jnp.cos(angle) - 1, jnp.sin(angle)]
    done += [stretch * jnp.cos(direction), stretch * jnp.sin(direction), *shift]
    return matrix, jnp.stack(done)


def _rotation(angle: jax.Array) -> jax.Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.eye(3).at[:2, :2].set(jnp.array([[cos, -sin], [sin, cos]]))


def resample(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """The image seen through an affine map, by cubic convolution (Keys 1981); beyond its edges it is mirrored.

    Args:
      image: (height, width, channels).
      matrix: (3, 3), from (x, y, 1) in the result to that in the image, in pixels from the centre.
    """
    height, width, _ = image.shape
    centre = jnp.array([(width - 1) / 2, (height - 1) / 2])
    x, y = jnp.meshgrid(jnp.arange(width) - centre[0], jnp.arange(height) - centre[1])
    places = jnp.einsum("ij,jhw->ihw", matrix, jnp.stack([x, y, jnp.ones_like(x)]), precision="highest")
    columns, column_weights = _taps(places[0] + centre[0], width)
    rows, row_weights = _taps(places[1] + centre[1], height)
    taken = image[rows[:, None], columns[None]]  # (4, 4, height, width, channels)
    return jnp.einsum("rhw,chw,rchwk->hwk", row_weights, column_weights, taken, precision="highest")


def _taps(place: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The four pixels about each place, mirrored at the edges without repeating them, and their weights."""
    place = place[None]
    below = jnp.floor(place)
    offset = jnp.arange(-1, 3).reshape(4, 1, 1)
    distance = jnp.abs(place - below - offset)
    near = 1 - distance**2 * (2.5 - 1.5 * distance)
    far = 2 - distance * (4 - distance * (2.5 - 0.5 * distance))
    index = jnp.mod(below.astype(int) + offset, max(2 * size - 2, 1))
    return jnp.minimum(index, jnp.abs(2 * size - 2 - index)), jnp.where(distance <= 1, near, far)
