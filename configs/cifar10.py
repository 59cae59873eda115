"""CIFAR-10, 60,000 images of 32 x 32 pixels: both papers' models at a size that one GPU trains.

Paper: none has it. Perceiver IO and the original Perceiver (2107.14795, 2103.03206), shrunk; every number here is ours.
Command: python train.py --config=configs/cifar10.py --workdir=runs/cifar10 --config.data.path=/data/cifar10
Cost: 3 x GFLOPs x 128 x 70,312, so 9.4e16 FLOPs for io. Somebody else's Perceiver of 96 latents of 384 channels took a
minute per epoch on an RTX 3080; there are 200 here.
Expected: nothing, as nobody printed it, but of resnet20,rgb by its own recipe: 91.25 % (1512.03385, table 6).
Measured: not yet run.

  variant       parameters  GFLOPs
  io             5,120,341    3.48   one cross-attend, 4 x 4 self-attends
  perceiver      4,866,208    4.85   4 cross-attends, and the same
  resnet20         309,626    0.15   with Fourier features
  vit           12,280,714    1.62   6 layers on patches of 4 x 4 pixels, with Fourier features
  resnet20,rgb     272,474    0.08
  vit,rgb       10,695,562    1.42

GFLOPs are those of the forward pass of one image, a multiplication and an addition being two operations.

`data.path` is what `make imagenet NAME=cifar10 DATA=/data` has built (docs/data.md). 45,000 images train, 5,000 choose
the checkpoint, and the 10,000 of the test set are looked at once: compare settings by validation/accuracy. Pictures are
shifted by up to 4 pixels, mirrored, and mixed.

Variants, joined by commas: io (the default) is Perceiver IO; perceiver is the original, 4 interleaved cross-attends and
a pooled head; resnet20 and vit are baselines, whose pixels carry Fourier features as further channels; rgb leaves these
out of a baseline, of resnet20 where none is named; permuted moves every pixel, with its position, to a fixed random
place, which breaks the neighbourhoods that resnet20 and vit rely on; debug runs 20 steps of a tiny model.
"""

from ml_collections import ConfigDict

from perceiver_jax.config import defaults

VARIANTS = ('io', 'perceiver', 'resnet20', 'vit', 'rgb', 'permuted', 'debug')


def get_config(variant: str = '') -> ConfigDict:
  """The locked config; `data.path` is yours to set. `variant` holds words of VARIANTS, joined by commas."""
  words = defaults.words(variant, VARIANTS)
  config = defaults.get_config()
  config.update({'num_steps': 45_000 * 200 // 128, 'batch_size': 128})
  config.optimizer.update({
    'name': 'adamw', 'peak_lr': 1e-3, 'schedule': 'warmup_cosine', 'warmup_steps': 1_000, 'max_norm': 1.0,
  })
  config.data.update({'name': 'tfds_images', 'image_size': 32, 'num_classes': 10, 'mixing': 'half_and_half'})
  config.model.update({
    'num_latents': 96, 'latent_channels': 384, 'num_blocks': 4, 'num_self_attends_per_block': 4, 'query_channels': 384,
  })
  config.eval.update({'every_steps': 1_000, 'batch_size': 1000})
  if 'perceiver' in words:
    defaults.interleave(config, num_cross_attends=4)
  if 'resnet20' in words or ('rgb' in words and 'vit' not in words):
    config.model.backbone = 'resnet20'
  if 'vit' in words:
    config.model.update({
      'backbone': 'vit', 'num_blocks': 1, 'num_cross_attends': 1, 'num_self_attends_per_block': 6, 'self_widening': 4,
    })
  if 'rgb' in words:
    config.model.position.kind = 'none'
  if 'permuted' in words:
    config.data.permutation = 'joint'
  if 'debug' in words:
    defaults.debug_images(config)
  return config
