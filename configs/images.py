"""Your own images: a folder with a subfolder per class, or an `.npz` file.

Paper: 2107.14795, appendix A.1, shrunk to what one GPU trains in hours; every number here is ours.
Command: python train.py --config=configs/images.py --workdir=runs/flowers \\
  --config.data.path=flowers/ --config.data.num_classes=5
Cost and expected result: those of your images. Measured: not yet run at full length.

A config of its own for your images is five lines, in any file:

    from configs import images

    def get_config(variant=''):
      config = images.get_config(variant)
      config.data.update({'path': 'flowers/', 'num_classes': 5})
      return config

Variants, joined by commas: io (the default) is Perceiver IO; perceiver is the original, 8 interleaved cross-attends and
a pooled head; permuted moves every pixel, with its position, to a fixed random place; debug runs 20 steps of a tiny
model.
"""

from ml_collections import ConfigDict

from perceiver_jax.config import defaults

VARIANTS = ('io', 'perceiver', 'permuted', 'debug')


def get_config(variant: str = '') -> ConfigDict:
  """The locked config; `data.path` and `data.num_classes` are yours to set. `variant`: words of VARIANTS, by commas."""
  words = defaults.words(variant, VARIANTS)
  config = defaults.get_config()
  config.update({'num_steps': 20_000, 'batch_size': 128})
  config.optimizer.update({
    'name': 'adamw', 'peak_lr': 1e-3, 'schedule': 'warmup_cosine', 'warmup_steps': 1_000, 'max_norm': 1.0,
  })
  config.data.update({'name': 'images', 'image_size': 64})
  config.model.update({
    'num_latents': 128, 'latent_channels': 256, 'num_blocks': 8, 'num_self_attends_per_block': 2, 'query_channels': 256,
  })
  config.model.position.num_bands = 32
  config.eval.update({'every_steps': 500, 'batch_size': 128})
  config.checkpoint.every_steps = 500
  if 'perceiver' in words:
    defaults.interleave(config, num_cross_attends=8)
  if 'permuted' in words:
    config.data.permutation = 'joint'
  if 'debug' in words:
    defaults.debug_images(config)
  return config
