"""ImageNet: Perceiver IO's classifiers, with the exact models that its authors released.

Paper: 2107.14795, appendix A and tables 7 and 8.
Command: python train.py --config=configs/imagenet.py:conv --workdir=runs/imagenet --config.data.path=imagenet/
Cost: 407 GFLOPs forward per image (conv 369, config_b 213 as printed), 1.7e20 FLOPs for a training run.
Expected: top-1 79.0 (fourier), 72.7 (learned), 82.1 (conv); config_b 84.5 after pre-training on JFT-300M, which is not
public. Measured: not yet run.

`data.path` is a folder with a subfolder per class (perceiver_jax/data/images.py); with `data.name=tfds_images`, which
augments as the authors did, one that `make imagenet` has built (docs/data.md).

The first paper (2103.03206, tables 1 and 2) prints these, raw and permuted; its training of the baselines it does not
describe, so they get Perceiver IO's, and the depth and width of transformer are ours:

  resnet50        73.5   39.4      with Fourier features, as the next two    26,366,120 parameters
  vit             76.7   61.7      ViT-B/16                                 137,292,520
  transformer     57.0   57.0      images of 64 x 64                         13,271,016
  resnet50,rgb    77.6             from Cubuk et al. 2020                    25,557,032
  vit,rgb         77.9             from Dosovitskiy et al. 2021              86,567,656
  (Perceiver)     78.0   78.0      the original, with 8 cross-attends        44,912,254

Variants, joined by commas: fourier (the default) reads every pixel with Fourier features, learned with a table of
positions, conv reads a quarter of the resolution behind a convolution and BatchNorm; config_b is the larger model of
appendix A.2, on any of the three, and rgb256 widens its pixels to 256 channels first, as that text says; resnet50, vit
and transformer are the baselines, whose pixels carry Fourier features as further channels; rgb leaves these out of a
baseline, of resnet50 where none is named; permuted moves every pixel, with its position, to a fixed random place, which
breaks the neighbourhoods that resnet50 and vit rely on; debug runs 20 steps of a tiny model.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = (
  'fourier', 'learned', 'conv', 'config_b', 'rgb256', 'resnet50', 'vit', 'transformer', 'rgb', 'permuted', 'debug')
BASELINES = {'resnet50', 'vit', 'transformer'}


def get_config(variant: str = '') -> ConfigDict:
  """The locked config; `data.path` is yours to set. `variant` holds words of VARIANTS, joined by commas."""
  words = common.words(variant, VARIANTS)
  config = common.get_config()
  config.data.update({'name': 'images', 'num_classes': 1000, 'class_names': 'imagenet'})
  config.model.stem.normalisation = 'imagenet'
  config.model.position.max_resolution = (224, 224)
  if 'learned' in words:
    config.model.stem.update({'kind': 'conv1x1', 'channels': 256})
    config.model.position.update({'kind': 'learned', 'projection_channels': 256})
    config.model.query_residual = False  # [code]
  if 'conv' in words:
    config.model.stem.kind = 'conv'
    config.model.position.max_resolution = (56, 56)
  if 'config_b' in words:
    config.model.update({
      'num_blocks': 1, 'num_self_attends_per_block': 16, 'self_widening': 4,  # [PIO A.2]
    })
  if 'rgb256' in words:
    config.model.stem.update({'kind': 'conv1x1', 'channels': 256})
  if 'resnet50' in words or ('rgb' in words and not words & BASELINES):
    config.model.backbone = 'resnet50'
  if 'vit' in words:
    config.model.update({
      'backbone': 'vit', 'num_blocks': 1, 'num_self_attends_per_block': 12, 'latent_channels': 768,
      'num_self_heads': 12, 'self_widening': 4,  # ViT-B
    })
    config.model.stem.patch_size = 16
  if 'transformer' in words:
    # 64 x 64 as printed [P1 4.1]; the rest is ours.
    config.data.image_size = 64
    config.model.update({
      'backbone': 'transformer', 'num_blocks': 1, 'num_self_attends_per_block': 8, 'latent_channels': 512,
      'num_self_heads': 8, 'self_widening': 1,
    })
    config.model.position.max_resolution = (64, 64)
  if 'rgb' in words:
    config.model.position.kind = 'none'
  if 'permuted' in words:
    config.data.permutation = 'joint'
  if 'debug' in words:
    common.debug_images(config)
    config.data.update({'image_size': 16, 'num_classes': 5})
  return config
