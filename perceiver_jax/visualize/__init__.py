"""Pictures, for people: how a run went, where latents look, what a model sees move, fills in or reconstructs.

Every function takes NumPy arrays and writes one PNG, which is replaced whole or not at all.
"""

import contextlib
import os
import sys

if 'matplotlib' not in sys.modules:
  # A backend that a notebook names for its own environment would fail this import, and pictures here need none.
  _backend = os.environ.pop('MPLBACKEND', None)
  import matplotlib

  if _backend is not None:
    os.environ['MPLBACKEND'] = _backend
    with contextlib.suppress(ValueError, ImportError):
      matplotlib.rcParams['backend'] = _backend

from perceiver_jax.visualize.attention import attention_over_pixels
from perceiver_jax.visualize.classification import classification_summary
from perceiver_jax.visualize.curves import curves_picture
from perceiver_jax.visualize.flow import flow_colours, flow_picture
from perceiver_jax.visualize.reconstruction import reconstruction
from perceiver_jax.visualize.text import masked_words

__all__ = [
  'attention_over_pixels', 'classification_summary', 'curves_picture', 'flow_colours', 'flow_picture', 'masked_words',
  'reconstruction',
]
