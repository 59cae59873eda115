"""Optical flow: the model that the authors released, and the smaller or otherwise fed ones of their ablation.

Paper: 2107.14795, section 4.2, appendix H and tables 3 and 16.
Command: python -m perceiver_jax predict --model=optical_flow first.png second.png --output=flow.png
Cost: 1,887 GFLOPs forward per tile of 368 x 496 (small 986).
Expected: end-point error 1.81 on Sintel clean, 2.42 on final, 4.98 on KITTI. Measured: not yet run; there is no
training data for it here yet.

Variants, joined by commas: full (the default) is the released model; small has 16 layers and 1,024 latents; separate
gives every frame its own elements, at its own time; pixels reads single pixels in place of 3 x 3 patches; debug is a
tiny model.
"""

from ml_collections import ConfigDict

from perceiver_jax.config import defaults

VARIANTS = ('full', 'small', 'separate', 'pixels', 'debug')


def get_config(variant: str = '') -> ConfigDict:
  """The locked config; `variant` holds words of VARIANTS, joined by commas."""
  words = defaults.words(variant, VARIANTS)
  config = defaults.training()
  config.update({
    'task': 'optical_flow', 'num_steps': 375_000, 'batch_size': 512, 'label_smoothing': 0.0,  # [PIO H]
    'data': {
      'frame_size': (368, 496),            # pixels, height and width [PIO H]
      'num_channels': 3,                   # of a pixel: red, green, blue
    },
    'model': {
      **defaults.latents(),
      'patch_size': 3,                     # pixels around a pixel, a side [PIO table 16]
      'separate_frames': False,            # an element is a pixel of one frame, not of both [PIO table 16]
      'stem_channels': 64,                 # of an element's features [code]
      'num_bands': 64,                     # of its position, per axis [code]
      'max_resolution': (368, 496),        # twice the highest frequencies [code]
    },
  })
  config.model.update({
    'num_latents': 2048, 'latent_channels': 512, 'num_blocks': 1, 'num_self_attends_per_block': 24,
    'num_self_heads': 16, 'query_residual': False,
  })
  config.optimizer.update({'peak_lr': 4e-4, 'schedule': 'warmup_cosine'})  # cosine, no warm-up [PIO H]
  if 'small' in words:
    config.model.update({'num_latents': 1024, 'num_self_attends_per_block': 16})
  config.model.separate_frames = 'separate' in words
  if 'pixels' in words:
    config.model.patch_size = 1
  if 'debug' in words:
    defaults.debug(config)
    config.data.frame_size = config.model.max_resolution = (12, 16)
    config.model.update({'stem_channels': 8, 'num_bands': 4})
  return config.lock()
