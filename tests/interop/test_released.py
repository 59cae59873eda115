"""The config of each released model, which the package holds, is that of its variant in configs/.

Where a variant was changed on purpose, `python -m tests.interop.test_released` writes the files anew.
"""

from __future__ import annotations

import pathlib

import pytest

from perceiver_jax import interop
from perceiver_jax.config import overrides
from perceiver_jax.config.saved import differences, load_config, save_config, to_json

ROOT = pathlib.Path(__file__).resolve().parents[2]
RELEASED = pathlib.Path(interop.__file__).parent / 'released'
VARIANTS = {
  'imagenet_fourier': 'configs/imagenet.py:fourier',
  'imagenet_learned': 'configs/imagenet.py:learned',
  'imagenet_conv': 'configs/imagenet.py:conv',
  'masked_lm': 'configs/masked_lm.py:bytes',
  'optical_flow': 'configs/optical_flow.py:full',
  'video_autoencoding': 'configs/video_autoencoding.py:latents784',
}


def test_there_is_a_config_for_each_released_model():
  assert sorted(path.parent.name for path in RELEASED.glob('*/*')) == sorted(VARIANTS)


@pytest.mark.parametrize('name', VARIANTS)
def test_the_config_of_a_released_model_is_that_of_its_variant(name):
  variant = overrides.load(str(ROOT / VARIANTS[name]))
  assert differences(load_config(RELEASED / name), variant) == []
  assert (RELEASED / name / 'config.json').read_text() == to_json(variant)


if __name__ == '__main__':
  for each, variant in VARIANTS.items():
    save_config(overrides.load(str(ROOT / variant)), RELEASED / each)
