"""A model in Hugging Face's directory has the figures in `eval` that their own logits give."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from perceiver_jax.commands.eval import evaluate
from tests.interop.huggingface_models import pair, their_logits

NUM_EACH, LABEL_SMOOTHING = 5, 0.1
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def _softmax_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
  num_classes = logits.shape[1]
  targets = np.eye(num_classes)[labels] * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / num_classes
  shifted = logits - logits.max(1, keepdims=True)
  return float(-np.mean(np.sum(targets * (shifted - np.log(np.exp(shifted).sum(1, keepdims=True))), axis=1)))


@pytest.mark.parametrize('name', ['learned', 'learned_wide'])
def test_the_figures_are_those_of_their_logits(tmp_path, capsys, name):
  theirs, data = pair(name).theirs, pair(name).config.data
  theirs.save_pretrained(tmp_path / 'model')
  labels = np.repeat(np.arange(data.num_classes), NUM_EACH)
  images = np.random.default_rng(0).integers(0, 256, (len(labels), data.image_size, data.image_size, 3), np.uint8)
  for index, (image, label) in enumerate(zip(images, labels, strict=True)):
    folder = tmp_path / 'pictures' / 'test' / f'class_{label}'
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f'{index}.png'), image[..., ::-1])
  for split in ('train', 'validation'):
    (tmp_path / 'pictures' / split).symlink_to(tmp_path / 'pictures' / 'test')

  assert evaluate([
    'eval', f'--model={tmp_path}/model', '--data_name=images', f'--data_path={tmp_path}/pictures']) == 0
  figures = {key: float(value) for key, value in (
    line.split(': ') for line in capsys.readouterr().out.splitlines())}

  pixels = ((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
  logits = their_logits(theirs, {'pixel_values': pixels})
  correct = np.mean(logits.argmax(1) == labels)
  assert 0 < correct < 1
  np.testing.assert_allclose(figures['test/accuracy'], correct, rtol=1e-5)
  np.testing.assert_allclose(figures['test/loss'], _softmax_cross_entropy(logits, labels), rtol=1e-4)
