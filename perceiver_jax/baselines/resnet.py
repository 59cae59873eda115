"""Residual networks (He et al. 2016, arXiv 1512.03385): ResNet-50 for photographs, ResNet-20 for small images.

Both take Haiku's blocks, and so Haiku's names. BatchNorm's statistics are those of one device's examples.
Shapes: B batch, H height, W width, F channels of a pixel with its position, E classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import haiku as hk
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
  from ml_collections import ConfigDict

_NORM: dict[str, Any] = {'create_scale': True, 'create_offset': True, 'decay_rate': 0.9}


def resnet50(pixels: jax.Array, num_classes: int, model: ConfigDict, *, is_training: bool) -> jax.Array:
  """pixels [B, H, W, F] -> logits [B, E], by the baseline of 2103.03206, table 1; 25,557,032 parameters on RGB."""
  return hk.nets.ResNet50(num_classes, name='resnet50')(pixels, is_training)


def resnet20(pixels: jax.Array, num_classes: int, model: ConfigDict, *, is_training: bool) -> jax.Array:
  """pixels [B, H, W, F] -> logits [B, E], by the model that its paper, section 4.2, trains on images of 32 x 32.

  A 3 x 3 convolution and no max-pool, which would leave too little of so few pixels; three groups of three blocks with
  16, 32 and 64 channels. A group's first shortcut is a projection where its shape changes. 272,474 parameters on RGB
  with 10 classes.
  """
  x = hk.Conv2D(16, 3, with_bias=False, name='stem')(pixels)
  x = jax.nn.relu(hk.BatchNorm(**_NORM, name='stem_norm')(x, is_training))
  for index, num_channels in enumerate((16, 32, 64)):
    group = hk.nets.ResNet.BlockGroup(
      num_channels, num_blocks=3, stride=2 if index else 1, bn_config=_NORM, resnet_v2=False, bottleneck=False,
      use_projection=index > 0, name=f'group_{index}')
    x = group(x, is_training, test_local_stats=False)
  return hk.Linear(num_classes, w_init=jnp.zeros, name='output')(jnp.mean(x, axis=(1, 2)))
