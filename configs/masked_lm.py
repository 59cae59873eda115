"""Masked language modelling on bytes or word pieces: the model that the authors released, and its two larger siblings.

Paper: 2107.14795, section 4.1, appendix F and tables 11 and 12.
Command: python -m perceiver_jax predict --model=masked_lm 'Bytes are [all it] reads.'
Cost: 121 GFLOPs forward per example (plus_plus 241).
Expected: an average of 81.0 on GLUE after fine-tuning (sentencepiece 81.2, plus_plus 81.8). Measured: not yet run;
there is no training data for it here yet.

Variants, joined by commas: bytes (the default) is the released model; sentencepiece reads 512 word pieces; plus_plus is
IO++, 40 layers of 1536 channels on bytes; debug is a tiny model.
"""

from ml_collections import ConfigDict

from perceiver_jax.config import defaults

VARIANTS = ('bytes', 'sentencepiece', 'plus_plus', 'debug')


def get_config(variant: str = '') -> ConfigDict:
  """The locked config; `variant` holds words of VARIANTS, joined by commas."""
  words = defaults.words(variant, VARIANTS)
  config = defaults.training()
  config.update({
    'task': 'masked_lm', 'num_steps': 500_000, 'batch_size': 2048, 'label_smoothing': 0.0,  # [PIO table 12]
    'data': {
      'max_length': 2048,                  # tokens [PIO table 11]
      'vocab_size': 262,                   # 256 bytes and 6 specials [code]
    },
    'model': {
      **defaults.latents(),
      'token_channels': 768,               # of an embedded token, and of a query [PIO table 11]
      'num_decoder_heads': 8,              # [code]
      'decoder_qk_channels': 256,          # [code]
    },
  })
  config.model.update({
    'num_latents': 256, 'latent_channels': 1280, 'num_blocks': 1, 'num_self_attends_per_block': 26,
    'num_cross_heads': 8, 'qk_channels': 256, 'v_channels': 1280, 'query_residual': False,
  })
  config.optimizer.update({  # [PIO table 12]
    'peak_lr': 1.25e-3, 'schedule': 'warmup_cosine', 'warmup_steps': 1_000, 'weight_decay': 0.01,
  })
  if 'sentencepiece' in words:
    config.data.update({'max_length': 512, 'vocab_size': 32_000})
  if 'plus_plus' in words:
    config.model.update({'latent_channels': 1536, 'num_self_attends_per_block': 40, 'v_channels': 1536})
  if 'debug' in words:
    defaults.debug(config)
    config.data.max_length = 32
    config.model.update({
      'num_cross_heads': 2, 'qk_channels': 8, 'v_channels': 16,
      'token_channels': 16, 'num_decoder_heads': 2, 'decoder_qk_channels': 8,
    })
  return config.lock()
