"""ImageNet: the classifiers of both papers, with the exact models that Perceiver IO's authors released.

Paper: 2103.03206 (P1), section 4.1 and tables 1, 2, 5, 6; 2107.14795 (PIO), appendix A and tables 7 and 8.
Command: python train.py --config=configs/imagenet.py:conv --workdir=runs/imagenet --config.data.path=/data/imagenet2012
Cost: below; a training run is 3 x GFLOPs x 1,024 x steps, 1.7e20 FLOPs for fourier. The command uses all accelerators
of one machine; several do not yet work together. docs/reproduction.md has a command for every figure, and hours.
Expected: top-1 as printed, in % of the 50,000 validation images. Measured: not yet run.

  variant             printed  permuted     parameters  GFLOPs   steps   printed in
  fourier                79.0               48,440,627     406  137,625  PIO 7; prints 407
  learned                72.7               62,255,848     478  137,625  PIO 7; prints 407
  conv                   82.1               48,646,522     369  137,625  PIO 7
  fourier_pool           78.6               42,135,859     404  137,625  PIO 7, as are the next two: 'Perceiver'
  learned_pool           67.6               55,951,080     476  137,625  prints 404
  conv_pool              77.4               42,341,754     367  137,625
  perceiver              78.0      78.0     44,912,254     706  150,136  P1 1 and 2
  perceiver_learned      70.9      70.9     48,189,577     380  150,136  P1 1 and 2
  config_b               84.5              212,170,035     269  131,000  PIO 7; prints 213; after JFT-300M
  conv,config_b          86.4              212,375,930     232  131,000  PIO 7; prints 176; after JFT-300M
  resnet50               73.5      39.4     26,366,120      28  150,136  P1 1 and 2, as are the next two
  vit                    76.7      61.7    137,292,520      55  150,136  ViT-B/16
  transformer            57.0      57.0     13,271,016     379  150,136  images of 64 x 64
  rgb                    77.6               25,557,032       8  150,136  P1 1, from Cubuk et al. 2020
  vit,rgb                77.9               86,567,656      35  150,136  P1 1, from Dosovitskiy et al. 2021

A multiplication and an addition are two operations; forward, of one image. JFT-300M is not public: config_b without
`init_from` starts from nothing, and must stay below the figure printed.

Recipes. Of PIO: LAMB at 0.002, constant for half of 110 epochs, then a cosine to 0; MixUp of half of the pictures and
CutMix of the rest, so that an example takes two records; epochs count examples. Of P1, for perceiver and
perceiver_learned: LAMB at 0.004, tenfold down at epochs 84, 102 and 114 of 120, pictures not mixed. It does not state
batch, weight decay, clipping and label smoothing, which are therefore PIO's. Nor does it describe how its baselines
were trained: they get the recipe of perceiver, and the depth and width of transformer are ours. Both papers have
RandAugment, 4 layers of magnitude 5 [PIO A.1]. Of config_b [PIO A.2]: LAMB at 0.002 (conv: 0.0002), constant for 70,000
of 131,000 steps, then a cosine to 0.

`data.path` is what `make imagenet` has built (docs/data.md); with `data.name=images`, whose augmentation is plainer, a
folder with a subfolder per class.

Variants, joined by commas: fourier (the default) reads every pixel with Fourier features, learned with a table of
positions, conv reads a quarter of the resolution behind a convolution and BatchNorm; fourier_pool, learned_pool and
conv_pool have the mean of the latents and a linear in place of the decoder; perceiver is the original, with 8
interleaved cross-attends; perceiver_learned is that with a table of positions and one cross-attend; config_b is the
larger model that is fine-tuned from another's weights, `init_from`, on any of the first three, and rgb256 widens its
pixels to 256 channels first, as PIO A.2 says; resnet50, vit and transformer are the baselines, whose pixels carry
Fourier features as further channels; rgb leaves these out of a baseline, of resnet50 where none is named; permuted
moves every pixel, with its position, to a fixed random place, which breaks the neighbourhoods that resnet50 and vit
rely on, and is refused with conv; debug runs 20 steps of a tiny model with 5 classes.
"""

from collections.abc import Set

from ml_collections import ConfigDict

from perceiver_jax.config import defaults

POOLED = {'fourier_pool', 'learned_pool', 'conv_pool'}
BASELINES = {'resnet50', 'vit', 'transformer', 'rgb'}
FIRST_PAPER = {'perceiver', 'perceiver_learned', *BASELINES}
VARIANTS = (
  'fourier', 'learned', 'conv', 'fourier_pool', 'learned_pool', 'conv_pool', 'perceiver', 'perceiver_learned',
  'config_b', 'rgb256', 'resnet50', 'vit', 'transformer', 'rgb', 'permuted', 'debug')


def get_config(variant: str = '') -> ConfigDict:
  """The locked config; `data.path` is yours to set. `variant` holds words of VARIANTS, joined by commas."""
  words = defaults.words(variant, VARIANTS)
  config = defaults.get_config()
  config.data.update({
    'name': 'tfds_images', 'num_classes': 1000, 'class_names': 'imagenet', 'mixing': 'half_and_half'})
  config.model.stem.normalisation = 'imagenet'
  config.model.position.max_resolution = (224, 224)
  _set_inputs(config, words)
  if words & FIRST_PAPER:
    config.num_steps = 1_281_167 * 120 // 1024
    config.optimizer.update({'peak_lr': 4e-3, 'schedule': 'step_decay'})  # [P1 4.1]
    config.data.mixing = 'none'
  if words & POOLED:
    config.model.head = 'pool'
  if 'perceiver' in words:
    defaults.interleave(config, num_cross_attends=8)
  if 'perceiver_learned' in words:
    config.model.update({'num_cross_attends': 1, 'head': 'pool'})  # 8 were unstable [P1 4.1]
  if 'config_b' in words:
    _set_config_b(config, words)
  _set_baseline(config, words)
  if 'permuted' in words:
    config.data.permutation = 'joint'
  if 'debug' in words:
    defaults.debug_images(config)
    config.data.update({'image_size': 16, 'num_classes': 5})
  return config


def _set_inputs(config: ConfigDict, words: Set[str]) -> None:
  stem, position = config.model.stem, config.model.position
  if words & {'learned', 'learned_pool'}:
    stem.update({'kind': 'conv1x1', 'channels': 256})
    position.update({'kind': 'learned', 'projection_channels': 256})
    config.model.query_residual = False  # [code]
  if words & {'conv', 'conv_pool'}:
    stem.kind = 'conv'
    position.max_resolution = (56, 56)
  if 'rgb256' in words:
    stem.update({'kind': 'conv1x1', 'channels': 256})
  if 'perceiver_learned' in words:
    position.update({'kind': 'learned', 'channels': 128, 'init_scale': 1.0})  # [P1 B]


def _set_config_b(config: ConfigDict, words: Set[str]) -> None:
  """The model, and its fine-tuning [PIO A.2]."""
  config.model.update({
    'num_blocks': 1, 'num_cross_attends': 1, 'num_self_attends_per_block': 16, 'self_widening': 4})
  config.num_steps = 131_000
  config.optimizer.update({
    'schedule': 'constant_cosine', 'constant_share': 70 / 131,
    'peak_lr': 2e-4 if words & {'conv', 'conv_pool'} else 2e-3})


def _set_baseline(config: ConfigDict, words: Set[str]) -> None:
  model = config.model
  if words & {'resnet50', 'rgb'}:
    model.backbone = 'resnet50'
  if 'vit' in words:
    model.update({
      'backbone': 'vit', 'num_blocks': 1, 'num_cross_attends': 1, 'num_self_attends_per_block': 12,
      'latent_channels': 768, 'num_self_heads': 12, 'self_widening': 4,  # ViT-B
    })
    model.stem.patch_size = 16
  if 'transformer' in words:
    # 64 x 64 as printed [P1 4.1]; the rest is ours.
    config.data.image_size = 64
    model.update({
      'backbone': 'transformer', 'num_blocks': 1, 'num_cross_attends': 1, 'num_self_attends_per_block': 8,
      'latent_channels': 512, 'num_self_heads': 8, 'self_widening': 1,
    })
    model.position.max_resolution = (64, 64)
  if 'rgb' in words:
    model.position.kind = 'none'
