"""Two pictures in one, of two labels: MixUp and CutMix (2107.14795, appendix A.1, and the authors' code).

Shapes: B examples of H x W pixels and C channels. An example has a picture, a partner of another record, and a random
key of its own, made of the seed, the step and its place in the whole batch: so what becomes of it depends neither on
the others nor on the number of devices. The ratio is how much of the example is left, and so what its label counts for.
Normalising may come before or after: a pixel's two weights add to 1.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from perceiver_jax.types import Array

ALPHA = 0.2                                 # of MixUp's Beta distribution: most pictures stay almost as they are


def mixup(images: Array, partners: Array, keys: Array) -> tuple[jax.Array, jax.Array]:
  """Fades the partner in.

  Args:
    images: [B, H, W, C], uint8 or floating.
    partners: the same, the other pictures.
    keys: [B] random keys, or their data, uint32 [B, 2].

  Returns:
    Mixed pictures, [B, H, W, C], float32 or wider, in the unit of the pictures; and the ratio, [B] float32 from 0 to 1,
    drawn from Beta(0.2, 0.2).

  Raises:
    UserError: the shapes do not fit.
  """
  _check(images, partners, keys)
  ratio = _mixup_ratio(keys)
  return _mixed(images, partners, _wide(ratio)), ratio


def cutmix(images: Array, partners: Array, keys: Array) -> tuple[jax.Array, jax.Array]:
  """Leaves a box of the picture, and puts it on the partner; otherwise as `mixup`.

  The box has the shape of the picture and sides of sqrt(1 - u) of it, u uniform from 0 to 1, half a side rounded down
  to whole pixels; it lies around a uniformly drawn pixel, and what would be outside is cut off. The ratio is the share
  of the pixels that are in the box.
  """
  _check(images, partners, keys)
  box = _cutmix_box(keys, *images.shape[1:3])
  return _mixed(images, partners, box), _share(box)


def half_and_half(images: Array, partners: Array, keys: Array, places: Array) -> tuple[jax.Array, jax.Array]:
  """MixUp for every other example and CutMix for those between; otherwise as `mixup`.

  Args:
    places: [B] integers, the examples' places in the whole batch, over all devices: MixUp where they are even. So it is
      half of each device's examples, and the same ones on any number of devices. (The authors' code takes the first
      half of each device's batch: the same but for which.)
  """
  _check(images, partners, keys)
  chex.assert_shape(places, keys.shape[:1])
  is_faded = jnp.asarray(places) % 2 == 0
  faded, box = _mixup_ratio(keys), _cutmix_box(keys, *images.shape[1:3])
  weight = jnp.where(_wide(is_faded), _wide(faded), box)
  return _mixed(images, partners, weight), jnp.where(is_faded, faded, _share(box))


def _mixup_ratio(keys: Array) -> jax.Array:
  return jax.vmap(lambda key: jax.random.beta(key, ALPHA, ALPHA, dtype=jnp.float32))(keys)


def _cutmix_box(keys: Array, height: int, width: int) -> jax.Array:
  """Returns [B, H, W, 1] float32: 1 where the example is left, 0 where its partner comes in."""

  def box(key: Array) -> jax.Array:
    keys = jax.random.split(key, 3)
    side = jnp.sqrt(1.0 - jax.random.uniform(keys[0], dtype=jnp.float32))
    rows = _within(keys[1], height, side)
    columns = _within(keys[2], width, side)
    return (rows[:, None] & columns)[..., None].astype(jnp.float32)

  return jax.vmap(box)(keys)


def _within(key: Array, size: int, side: jax.Array) -> jax.Array:
  """Returns [size] bool: true for whole pixels up to half of `side`, a share of size, around a random one."""
  reach = (side * size).astype(jnp.int32) // 2
  centre = jax.random.randint(key, (), 0, size)
  pixels = jnp.arange(size)
  return (pixels >= centre - reach) & (pixels < centre + reach)


def _wide(x: jax.Array) -> jax.Array:
  """Adds three axes: [B] to [B, 1, 1, 1]."""
  return x[:, None, None, None]


def _share(box: jax.Array) -> jax.Array:
  """Returns the share of the pixels that a box [B, H, W, 1] holds: [B]."""
  return jnp.mean(box, axis=(1, 2, 3))


def _mixed(images: Array, partners: Array, weight: jax.Array) -> jax.Array:
  """Mixes to [B, H, W, C]; the weight of `images` is [B, H, W, 1] or [B, 1, 1, 1]."""
  dtype = jnp.promote_types(images.dtype, jnp.float32)
  return weight * jnp.asarray(images, dtype) + (1.0 - weight) * jnp.asarray(partners, dtype)


def _check(images: Array, partners: Array, keys: Array) -> None:
  chex.assert_rank(images, 4)
  chex.assert_equal_shape([images, partners])
  chex.assert_equal_shape_prefix([images, keys], 1)
