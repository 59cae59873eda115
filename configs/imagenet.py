"""ImageNet: Perceiver IO's classifiers, with the exact models that its authors released.

Paper: 2107.14795, appendix A and tables 7 and 8.
Command: python train.py --config=configs/imagenet.py:conv --workdir=runs/imagenet --config.data.path=imagenet/
Cost: 407 GFLOPs forward per image (conv 369, config_b 213 as printed), 1.7e20 FLOPs for a training run.
Expected: top-1 79.0 (fourier), 72.7 (learned), 82.1 (conv); config_b 84.5 after pre-training on JFT-300M, which is not
public. Measured: not yet run.

`data.path` is a folder with a subfolder per class; see perceiver_jax/data/images.py.

Variants, joined by commas: fourier (the default) reads every pixel with Fourier features, learned with a table of
positions, conv reads a quarter of the resolution behind a convolution and BatchNorm; config_b is the larger model of
appendix A.2, on any of the three, and rgb256 widens its pixels to 256 channels first, as that text says; debug runs 20
steps of a tiny model.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = ('fourier', 'learned', 'conv', 'config_b', 'rgb256', 'debug')


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
  if 'debug' in words:
    common.debug_images(config)
    config.data.update({'image_size': 16, 'num_classes': 5})
  return config
