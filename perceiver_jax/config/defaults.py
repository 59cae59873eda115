"""Keys that experiments share, with their defaults; the words of variants; the shrinking for a trial.

A default is that of Perceiver IO on ImageNet (2107.14795, appendix A.1) unless its comment says 'ours'; an experiment's
file sets what differs. [P1] is 2103.03206 v2, [PIO] 2107.14795 v3, [code] the authors' published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from perceiver_jax.config.values import nearest


def get_config() -> ConfigDict:
  """Returns the keys of image classification, locked; a placeholder is a key that may stay unset."""
  config = training()
  config.update({'task': 'image_classification', 'data': _images(), 'model': {**latents(), **_image_model()}})
  return config.lock()


def training() -> ConfigDict:
  """The keys of every experiment; a task adds `data` and `model`. Not locked."""
  config = ConfigDict()
  config.task = placeholder(str)           # perceiver_jax/tasks/<task>.py
  config.seed = 0                          # of parameters, data order, augmentation and dropout; ours
  config.num_steps = 137_625               # optimizer updates; 110 epochs of 1,281,167 images by 1,024
  config.batch_size = 1024                 # examples per update, over all devices
  config.micro_batches = 1                 # parts a batch is split into where it does not fit in memory; ours
  config.precision = 'params=float32,compute=float32,output=float32'  # a jmp policy; ours
  config.attention_impl = 'auto'           # or dense, factored, chunked: how cross-attends are computed; ours
  config.remat = 'dots'                    # or none, layers: what the backward pass computes again; ours
  config.init_from = placeholder(str)      # workdir of a run, or converted weights, to start from
  config.ema_decay = placeholder(float)    # per step, of an average of the parameters to evaluate; the papers have none
  config.label_smoothing = 0.1             # probability spread over all classes [code]
  config.peer_timeout_seconds = 60.0       # of silence, after which one of several processes is dead; ours
  config.max_skipped = 10                  # non-finite updates in a row before the run stops; ours
  config.deterministic = False             # the same bits in every run on the same GPUs; slower
  config.optimizer = _optimizer()
  config.eval = ConfigDict({
    'every_steps': 5_000,                  # ours
    'batch_size': 1024,                    # examples, over all devices; ours
    'splits': ('validation',),             # evaluated every `every_steps`, and at the end; ours
    'final_splits': ('test',),             # evaluated once, at the end, by the best checkpoint; ours
  })
  config.checkpoint = ConfigDict({
    'every_steps': 1_000,                  # ours
    'keep_last': 2,                        # how many of the newest are kept, beside the best; ours
    'best': 'highest validation/accuracy',  # lowest or highest, and a figure; None is the last; ours
  })
  config.log = ConfigDict({
    'every_steps': 100,                    # ours
    'wandb': False,                        # also to Weights & Biases, where it is installed
  })
  return config


def _optimizer() -> ConfigDict:
  return ConfigDict({
    'name': 'lamb',                        # lamb, adamw or sgd
    'peak_lr': 2e-3,                       # at this batch size; not scaled by it
    'schedule': 'constant_cosine',         # or warmup_cosine, step_decay
    'constant_share': 0.5,                 # of the run, of constant_cosine, before its cosine
    'warmup_steps': 0,                     # of warmup_cosine, from 0 to peak_lr
    'weight_decay': 0.1,                   # of weights and tables, not of biases and norms
    'max_norm': 10.0,                      # global norm to which gradients are clipped
  })


def latents() -> dict[str, Any]:
  """The keys of `model` that every task has: encoder, processor and decoder."""
  return {
    'num_latents': 512,                    # rows of the latent array
    'latent_channels': 1024,               # its width
    'num_blocks': 8,                       # repeats of the latent Transformer
    'num_self_attends_per_block': 6,       # depth of the latent Transformer
    'share_blocks': True,                  # all blocks have one set of parameters
    'num_cross_attends': 1,                # 1 is Perceiver IO; the original has 8 [P1 4.1]
    'share_cross_attends': True,           # those after the first have one set of parameters [P1 3.1]
    'cross_attends': 'interleaved',        # one per num_blocks / num_cross_attends blocks, or start [P1 table 6]
    'num_cross_heads': 1,                  # of the cross-attends; divides the channels of the inputs
    'num_self_heads': 8,                   # of the self-attends; divides latent_channels
    'qk_channels': placeholder(int),       # of queries and keys; unset, a cross-attend takes those of the inputs
    'v_channels': placeholder(int),        # of values; unset, those of the queries
    'cross_widening': 1,                   # hidden width of the cross-attends' MLP / its channels
    'self_widening': 1,                    # of the self-attends' MLP
    'encoder_residual': True,              # add the latents to what they read [code]
    'query_residual': True,                # add the query to what it found; False with learned positions [code]
    'gelu': 'tanh',                        # the approximation [code], or exact
    'masked_rows': 'zero',                 # what a masked query reads [code], or mean: see core/attention.py
    'dropout_prob': 0.0,                   # of what a block adds [P1 4.1: it hurt]
    'attention_dropout_prob': 0.0,         # of attention weights [code]
  }


def _images() -> dict[str, Any]:
  return {
    'name': placeholder(str),              # perceiver_jax/data/<name>.py
    'path': placeholder(str),              # where the records lie, for data that does not come with a package
    'image_size': 224,                     # pixels, height and width
    'num_channels': 3,                     # of a pixel: red, green, blue
    'num_classes': placeholder(int),       # how many labels there are: 0 to num_classes - 1
    'class_names': placeholder(str),       # a text file of a line per class, or one of perceiver_jax/data/labels
    'permutation': 'none',                 # joint: pixels move with their positions [P1 4.1]; pixels: they move alone
    'mixing': 'none',                      # ours; half_and_half: MixUp of half the examples, CutMix of the rest [code]
  }


def _image_model() -> dict[str, Any]:
  return {
    'backbone': 'perceiver',               # or a baseline: resnet50, resnet20, vit, transformer [P1 4.1]
    'head': 'query',                       # a learned query [PIO], or pool: the mean of the latents [P1 3.1]
    'query_channels': 1024,                # width of the query
    'stem': {
      'kind': 'pixels',                    # or patches, conv1x1, conv (7 x 7, BatchNorm, max-pool) [PIO A.1]
      'channels': 64,                      # of the two convolutions [code]
      'patch_size': 4,                     # of patches and of a vit, pixels; ours
      'padding': 'same',                   # of conv [code], or symmetric: see adapters/image.py
      'normalisation': 'symmetric',        # of uint8 to [-1, 1]; or imagenet, by its mean and deviation [code]
    },
    'position': {
      'kind': 'fourier',                   # or learned; of a baseline also none
      'num_bands': 64,                     # of fourier, per axis
      'max_resolution': placeholder(tuple),  # (height, width), twice the highest frequencies; unset, those of the grid
      'spacing': 'linear',                 # of the bands, or log (arXiv v1 of P1)
      'channels': 256,                     # of learned
      'init_scale': 0.02,                  # of learned, the deviation that its table starts with [code]
      'projection_channels': placeholder(int),  # of a linear after learned; unset, there is none [code: 256]
    },
  }


def words(variant: str, offered: Sequence[str]) -> frozenset[str]:
  """The words of a variant such as 'perceiver,permuted'. Raises ValueError at one that is not `offered`."""
  chosen = [word.strip() for word in variant.split(',')] if variant else []
  for word in chosen:
    if word not in offered:
      raise ValueError(
        f'there is no variant {word!r}. Did you mean {nearest(word, offered)!r}? There are: {", ".join(offered)}')
  return frozenset(chosen)


def interleave(config: ConfigDict, num_cross_attends: int) -> None:
  """Turns Perceiver IO into the original: a cross-attend before every block, and a pooled head [P1 3.1]."""
  config.model.update({'num_cross_attends': num_cross_attends, 'num_blocks': num_cross_attends, 'head': 'pool'})


def debug(config: ConfigDict) -> None:
  """Shrinks an experiment until it shows in seconds that all of it runs; it will have learned nothing."""
  config.update({'num_steps': 20, 'batch_size': 16})
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, 5)
  config.checkpoint.every_steps = 5
  config.eval.update({'every_steps': 10, 'batch_size': 64})
  config.log.every_steps = 5
  num_cross_attends = min(config.model.num_cross_attends, 2)
  config.model.update({
    'num_latents': 4, 'latent_channels': 16, 'num_blocks': 2, 'num_self_attends_per_block': 1,
    'num_cross_attends': num_cross_attends, 'num_self_heads': 2,
  })


def debug_images(config: ConfigDict) -> None:
  """Shrinks an experiment as `debug` does, and the model of an image."""
  debug(config)
  config.model.query_channels = 16
  config.model.stem.update({'channels': 8, 'patch_size': min(config.model.stem.patch_size, 4)})
  config.model.position.update({'num_bands': 4, 'channels': 16})
  if config.model.position.projection_channels:
    config.model.position.projection_channels = 16
  if config.model.backbone == 'resnet50':
    config.model.backbone = 'resnet20'
