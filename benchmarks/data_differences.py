"""How far our ImageNet pictures are from those that TensorFlow makes of the same files: writes data_differences.json.

  python -m benchmarks.data_differences --tf_python=PYTHON     an environment with TensorFlow; .venv-tf by default

Step by step, on made-up photographs and on the two real ones that scikit-learn brings: the same file decoded by both,
the same part of a picture distorted by both and resized by both, and the sizes of random parts.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import tempfile
from typing import Any

import cv2
import numpy as np
from sklearn.datasets import load_sample_images

from benchmarks import photos, record
from perceiver_jax.data import randaugment
from perceiver_jax.data.augmentation import random_crop, resize
from perceiver_jax.data.order import generator
from perceiver_jax.data.tfds_images import decode

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZE = 224
NUM_PHOTOS = 64                             # pictures of each kind
# What is random in them: which way, or where; at magnitude 5.
SIGNED = {'rotate': 15, 'shear_x': 0.15, 'shear_y': 0.15, 'translate_x': 50, 'translate_y': 50}
FIXED = ('auto_contrast', 'equalize', 'invert', 'posterize', 'solarize', 'solarize_add',
         'color', 'contrast', 'brightness', 'sharpness')
PACKAGES = ('numpy', 'opencv-python-headless', 'scipy', 'scikit-learn')


def pictures() -> dict[str, list[np.ndarray]]:
  """NUM_PHOTOS of each kind, [375, 500, 3] uint8; of the two real ones, random parts."""
  real = []
  for i in range(NUM_PHOTOS):
    photo = load_sample_images().images[i % 2]
    top, left, height, width = random_crop(photo.shape[0], photo.shape[1], generator('real', i))
    real.append(cv2.resize(photo[top:top + height, left:left + width], (photos.WIDTH, photos.HEIGHT),
                           interpolation=cv2.INTER_AREA))
  return {'made up': [photos.photo(i) for i in range(NUM_PHOTOS)], 'real': real}


def prepare(images: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
  """What both start from: {'file/KIND/i': JPEG, 'part/KIND/i': distorted, 'picture/i': some, 'shape': [2]}."""
  given = {'shape': np.array([photos.HEIGHT, photos.WIDTH])}
  for kind, several in images.items():
    for i, image in enumerate(several):
      random = generator('part', i)
      top, left, height, width = random_crop(photos.HEIGHT, photos.WIDTH, random)
      part = image[top:top + height, left:left + width]
      given[f'file/{kind}/{i}'] = np.frombuffer(photos.jpeg(image), np.uint8)
      given[f'part/{kind}/{i}'] = randaugment.rand_augment(part, random, num_layers=4, magnitude=5)
  return given | {f'picture/{i}': image for several in images.values() for i, image in enumerate(several[:4])}


def decoding(given: Any, theirs: Any, method: str) -> dict[str, float]:
  away = [np.abs(decode(given[name].tobytes(), 3).astype(int) - theirs[name.replace('file', method, 1)])
          for name in given if name.startswith('file/')]
  return {'mean': float(np.mean(away)), 'max': int(np.max(away))}


def resizing(given: Any, theirs: Any, kind: str) -> dict[str, float]:
  """Our uint8 against their floats: what is cut off above 255 and below 0, and what else is away."""
  names = [name for name in given if name.startswith(f'part/{kind}/')]
  ours = np.stack([resize(given[name], SIZE) for name in names]).astype(np.float32)
  exact = np.stack([theirs[name.replace('part', 'resized', 1)] for name in names])
  cut = np.maximum(exact - 255, 0) + np.maximum(-exact, 0)
  rounded = np.abs(ours - exact.clip(0, 255))
  return {
    'lowest': float(exact.min()), 'highest': float(exact.max()), 'share_cut': float((cut > 0).mean()),
    'share_cut_by_more_than_5': float((cut > 5).mean()), 'mean_cut_where_cut': float(cut[cut > 0].mean()),
    'max_cut': float(cut.max()), 'mean_cut': float(cut.mean()), 'mean_rounded': float(rounded.mean()),
    'max_rounded': float(rounded.max())}


def operations(given: Any, theirs: Any) -> dict[str, dict[str, float]]:
  """Of RandAugment at magnitude 5: the mean and the largest difference, and the share of values that differ."""
  found = {}
  for name in (*FIXED, *SIGNED):
    away = [_closest(name, given[f'picture/{i}'], theirs[f'{name}/{i}']) for i in range(4)]
    found[name] = {'mean': float(np.mean(away)), 'max': int(np.max(away)), 'share': float(np.mean(np.array(away) > 0))}
  return found


def _closest(name: str, image: np.ndarray, theirs: np.ndarray) -> np.ndarray:
  """Differences [H, W, 3] of ours, of the two that there are where the way is random."""
  if name in SIGNED:
    ours = [getattr(randaugment, name)(image, sign * SIGNED[name]) for sign in (1, -1)]
  else:
    ours = [randaugment.OPS[name](image, 0.5, generator(0))]
  return min((np.abs(each.astype(int) - theirs) for each in ours), key=np.mean)


def random_parts(theirs: np.ndarray) -> dict[str, float]:
  """The largest difference of the distribution functions, of areas and of aspects, of as many parts."""
  ours = np.array([random_crop(photos.HEIGHT, photos.WIDTH, generator('box', i))[2:] for i in range(len(theirs))])
  return {'area': _distance(ours.prod(1), theirs.prod(1)),
          'aspect': _distance(ours[:, 1] / ours[:, 0], theirs[:, 1] / theirs[:, 0])}


def _distance(one: np.ndarray, other: np.ndarray) -> float:
  levels = np.sort(np.concatenate([one, other]))
  share = [np.searchsorted(np.sort(sample), levels, side='right') / len(sample) for sample in (one, other)]
  return float(np.abs(share[0] - share[1]).max())


def run(tf_python: str) -> dict[str, Any]:
  given = prepare(pictures())
  with tempfile.TemporaryDirectory() as directory:
    source, target = (pathlib.Path(directory) / name for name in ('given.npz', 'found.npz'))
    np.savez(source, allow_pickle=False, **given)
    subprocess.run([tf_python, str(ROOT / 'benchmarks' / 'tf_differences.py'), str(source), str(target)], check=True)
    with np.load(target) as found:
      theirs = dict(found)
  return record.surroundings(PACKAGES) | {
    'decoding': {method: decoding(given, theirs, method) for method in ('default', 'accurate')},
    'resizing': {kind: resizing(given, theirs, kind) for kind in ('made up', 'real')},
    'operations': operations(given, theirs), 'random_parts': random_parts(theirs['boxes'])}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--json', type=pathlib.Path, default=ROOT / 'benchmarks' / 'results' / 'data_differences.json')
  parser.add_argument('--tf_python', default=str(ROOT / '.venv-tf' / 'bin' / 'python'))
  flags = parser.parse_args()
  if not pathlib.Path(flags.tf_python).exists():
    parser.error(f'there is no {flags.tf_python}: `make .venv-tf/.requirements` installs TensorFlow there (2 GB)')
  result = run(flags.tf_python)
  record.write(flags.json, result)
  print(flags.json.read_text())


if __name__ == '__main__':
  main()
