"""Noise in the shape of a spec."""

import itertools

import numpy as np

from perceiver_jax import types
from perceiver_jax.data import pipeline, synthetic
from perceiver_jax.data.synthetic import SyntheticSource

SPEC = {
    'image': types.Field((8, 8, 3), 'uint8'),
    'tokens': types.Field((500,), 'int32'),
    'flow': types.Field((4, 2), 'float32'),
    'label': types.Field((), 'int32'),
}


def test_examples_match_their_spec_and_depend_on_seed_and_index():
  source = SyntheticSource(SPEC, 5)
  assert {name: types.Field(value.shape, value.dtype.name) for name, value in source[2].items()} == SPEC
  for name in ('image', 'tokens', 'flow'):
    np.testing.assert_array_equal(source[2][name], SyntheticSource(SPEC, 9)[2][name])
    assert not np.array_equal(source[2][name], source[3][name])
    assert not np.array_equal(source[2][name], SyntheticSource(SPEC, 5, seed=1)[2][name])


def test_integers_stay_below_their_bound_and_reach_it():
  source = SyntheticSource({**SPEC, 'tokens': types.Field((500,), 'int32', bound=7)}, 300)
  assert set(source[0]['tokens']) == set(range(7))
  assert {int(source[index]['label']) for index in range(30)} == {0, 1}
  pixels = np.stack([source[index]['image'] for index in range(30)])
  assert (pixels.min(), pixels.max()) == (0, 255)


def test_the_pipeline_reads_it():
  batches = pipeline.batches(synthetic.dataset(SPEC, 5), 'train', batch_size=4, is_training=True)
  batch, = itertools.islice(batches, 1)
  assert batch['flow'].shape == (4, 4, 2)
  assert batch['mask'].sum() == 4
