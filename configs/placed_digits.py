"""Handwritten digits anywhere on a larger canvas: permuted images in small, for any machine (benchmarks/permuted.py).

Paper: 2103.03206, section 4.1 and table 2, shrunk; every number here is ours, chosen by validation accuracy alone.
Command: python train.py --config=configs/placed_digits.py:perceiver,permuted --workdir=runs/placed
Cost: one to four minutes on one CPU core; all models, orders and seeds (`make permuted`) about an hour on two.
Expected: the Perceivers and transformer as good permuted as raw, resnet20 and vit worse. Measured: see README.

Variants, joined by commas: io (the default) is Perceiver IO; perceiver is the original, 2 interleaved cross-attends and
a pooled head; resnet20, vit on patches of 4 x 4 and transformer, which sees the canvas at 10 x 10 as the paper's sees
photographs at 64 x 64, are the baselines, whose pixels carry Fourier features as further channels; rgb leaves these out
of resnet20 and vit, of resnet20 where neither is named; permuted moves every pixel, with its position, to a fixed
random place; debug runs 20 steps of a tiny model.
"""

from ml_collections import ConfigDict

from perceiver_jax.config import defaults

VARIANTS = ('io', 'perceiver', 'resnet20', 'vit', 'transformer', 'rgb', 'permuted', 'debug')


def get_config(variant: str = '') -> ConfigDict:
  """The locked config; `variant` holds words of VARIANTS, joined by commas."""
  words = defaults.words(variant, VARIANTS)
  config = defaults.get_config()
  config.update({'num_steps': 4_000, 'batch_size': 32, 'label_smoothing': 0.0})
  config.optimizer.update({
    'name': 'adamw', 'peak_lr': 1e-3, 'schedule': 'warmup_cosine', 'warmup_steps': 100,
    'weight_decay': 0.05, 'max_norm': 1.0,
  })
  config.data.update({'name': 'placed_digits', 'image_size': 20, 'num_channels': 1, 'num_classes': 10})
  config.model.update({
    'num_latents': 16, 'latent_channels': 96, 'num_blocks': 1, 'num_self_attends_per_block': 2, 'num_self_heads': 4,
    'query_channels': 96,
  })
  config.model.position.num_bands = 10
  # A quarter of the steps each, and all of them kept: the study looks at 25, 50 and 100 %.
  config.eval.update({'every_steps': 1_000, 'batch_size': 256})
  config.checkpoint.update({'every_steps': 1_000, 'keep_last': 4})
  config.log.every_steps = 100
  if 'perceiver' in words:
    defaults.interleave(config, num_cross_attends=2)
    config.model.num_self_attends_per_block = 1
  if 'resnet20' in words or ('rgb' in words and 'vit' not in words):
    config.model.backbone = 'resnet20'
  if words & {'vit', 'transformer'}:
    config.model.latent_channels = 64
    config.model.position.num_bands = 4
  if 'vit' in words:
    config.model.update({'backbone': 'vit', 'num_self_attends_per_block': 3})
    config.model.stem.patch_size = 4
  if 'transformer' in words:
    config.data.image_size = 10
    config.model.backbone = 'transformer'
  if 'rgb' in words:
    config.model.position.kind = 'none'
  if 'permuted' in words:
    config.data.permutation = 'joint'
  if 'debug' in words:
    defaults.debug_images(config)
  return config
