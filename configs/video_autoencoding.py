"""Autoencoding of Kinetics clips, video, sound and label at once: the model that the authors released.

Paper: 2107.14795, section 4.3, appendix I and tables 4 and 17.
Command: python -m perceiver_jax predict --model=video_autoencoding clip.mp4 sound.wav --output=again.png
Cost: 7,455 GFLOPs for all of a clip's 804,737 outputs.
Expected: 24.37 dB for the video, 26.97 for the audio, 10.2 % of labels right; 24.27, 25.33 and 8.6 with 392 latents;
23.21, 14.15 and 11.5 with 196. Measured: not yet run; there is no training data for it here yet.

Variants, joined by commas: latents784 (the default) is the released model, latents392 and latents196 compress more;
debug is a tiny model.
"""

from ml_collections import ConfigDict

from perceiver_jax.config import defaults

VARIANTS = ('latents784', 'latents392', 'latents196', 'debug')


def get_config(variant: str = '') -> ConfigDict:
  """The locked config; `variant` holds words of VARIANTS, joined by commas."""
  words = defaults.words(variant, VARIANTS)
  config = defaults.training()
  config.update({
    'task': 'video_autoencoding', 'batch_size': 1024, 'label_smoothing': 0.0,  # [PIO I]
    'data': {
      'num_frames': 16,                    # at 25 a second [PIO I]
      'image_size': 224,                   # pixels, height and width
      'samples_per_frame': 1920,           # of audio, at 48 kHz [PIO I]
      'num_classes': 700,                  # of Kinetics-700-2020
      'class_names': 'kinetics700',        # a text file of a line per class, or one of perceiver_jax/data/labels
    },
    'model': {
      **defaults.latents(),
      'video': {
        'patch_size': 4,                   # pixels, a side [PIO I]
        'num_bands': 32,                   # per axis [code]
        'max_resolution': (16, 56, 56),    # time, row, column, also of the outputs [code]
      },
      'audio': {
        'patch_size': 16,                  # samples [PIO I]
        'num_bands': 192,                  # [code]
        'max_resolution': (30_720,),       # [code]
      },
      'min_padding': 4,                    # channels that tell an element's modality, at least [code]
      'label_query_channels': 1024,        # [code]
      'min_query_padding': 2,              # channels that tell a query's modality, at least [code]
      'output_channels': 512,              # of an answer, before its modality's own linear [code]
    },
  })
  config.model.update({
    'num_latents': 784, 'latent_channels': 512, 'num_blocks': 1, 'num_self_attends_per_block': 8,
    'query_residual': False,
  })
  config.optimizer.peak_lr = 1e-3  # [PIO I]
  for num_latents in (392, 196):
    if f'latents{num_latents}' in words:
      config.model.num_latents = num_latents
  if 'debug' in words:
    defaults.debug(config)
    config.data.update({'num_frames': 2, 'image_size': 8, 'samples_per_frame': 32, 'num_classes': 5, 'class_names': ''})
    config.model.video.update({'patch_size': 2, 'num_bands': 4, 'max_resolution': (2, 4, 4)})
    config.model.audio.update({'patch_size': 8, 'num_bands': 6, 'max_resolution': (64,)})
    config.model.update({
      'min_padding': 3, 'label_query_channels': 16, 'min_query_padding': 1, 'output_channels': 16,
    })
  return config.lock()
