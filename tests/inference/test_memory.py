"""The two models with most inputs and outputs, at full size, on a machine with little memory.

A tile of flow has 182,528 pixels, which 2,048 latents read and which ask them back; a clip has 804,737 queries. All at
once, the weights of one such attention would take 1.4 and 2.4 GiB, and there are several copies of them.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

SCRIPT = """
import json, sys, time

import numpy as np

from benchmarks.peer_worker import peak_rss_bytes
from perceiver_jax.config import overrides
from perceiver_jax.inference.model import build, template
from perceiver_jax.inference import optical_flow, video_autoencoding

rng = np.random.default_rng(0)
config = overrides.load(sys.argv[1])
params, state = template(config)
params = {module: {leaf: 0.02 * rng.standard_normal(x.shape, dtype=np.float32) for leaf, x in leaves.items()}
          for module, leaves in params.items()}
model = build(config, params, state)
start = time.monotonic()
if config.task == 'optical_flow':
  outputs = [optical_flow.predict(model, *rng.integers(0, 256, (2, 368, 496, 3), dtype=np.uint8)).flow]
else:
  video = rng.integers(0, 256, (16, 224, 224, 3), dtype=np.uint8)
  again = video_autoencoding.predict(model, video, rng.uniform(-1, 1, 30_720))
  outputs = [again.video_again, again.audio_again, again.probabilities]
print(json.dumps({
  'shapes': [x.shape for x in outputs],
  'is_finite': all(bool(np.isfinite(x).all()) for x in outputs),
  'gib': peak_rss_bytes() / 2**30,
  'seconds': time.monotonic() - start,
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='others count in other units')
@pytest.mark.parametrize('experiment, shapes', [
  ('optical_flow', [[368, 496, 2]]), ('video_autoencoding', [[16, 224, 224, 3], [30_720], [5]]),
])
def test_two_gibibytes_are_enough(experiment, shapes):
  """Random weights, which cost what the real ones do."""
  environment = {
    **os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
  process = subprocess.run(
    [sys.executable, '-c', SCRIPT, str(ROOT / 'configs' / f'{experiment}.py')], env=environment, capture_output=True,
    text=True, check=False)
  assert process.returncode == 0, process.stderr
  found = json.loads(process.stdout.splitlines()[-1])
  print(f'{experiment}: {found["gib"]:.2f} GiB, {found["seconds"]:.0f} s')
  assert found['shapes'] == shapes and found['is_finite']
  assert found['gib'] < 2
