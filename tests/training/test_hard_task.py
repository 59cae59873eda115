"""A task with all of the hard things at once, and the tasks without data of their own, trained on made-up arrays.

Two inputs of different lengths with masks, sampled targets per example, scores that do not add up, a best checkpoint by
the lowest value, two evaluation splits of different shapes, and a curriculum by step.
"""

from __future__ import annotations

import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from perceiver_jax.adapters.multimodal import pack
from perceiver_jax.config import overrides
from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.perceiver import Decoder, Encoder, Processor, encode, learned_query
from perceiver_jax.core.position_encoding import fourier_features
from perceiver_jax.data import synthetic
from perceiver_jax.data.dataset import Dataset, Numbers
from perceiver_jax.runs.log import read_history
from perceiver_jax.tasks import make_task
from perceiver_jax.training import loop
from perceiver_jax.training.evaluate import evaluate_workdir
from perceiver_jax.types import Field, Task, UserError

WORDS, WAVE, POINTS = 6, 10, 3
INPUTS = {
  'words': Field((WORDS, 2), 'float32'), 'words_valid': Field((WORDS,), 'uint8'),
  'wave': Field((WAVE, 1), 'float32'), 'wave_valid': Field((WAVE,), 'uint8'),
  'places': Field((POINTS,), 'int32', bound=WAVE),
}
TARGETS = {
  'values': Field((POINTS,), 'float32'), 'label': Field((), 'int32', bound=2), 'severity': Field((), 'float32')}
STEPS_SEEN: set[float] = set()


def _prepare(record, *, random, position, step, num_words, is_training):
  wave = random.normal(size=(WAVE, 1)).astype(np.float32)
  places = random.permutation(WAVE)[:POINTS].astype(np.int32)
  if record == 5 and not is_training:
    raise ValueError('torn')
  return {
    'words': random.normal(size=(num_words, 2)).astype(np.float32),
    'words_valid': (np.arange(num_words) < 1 + record % num_words).astype(np.uint8),
    'wave': wave, 'wave_valid': (np.arange(WAVE) < WAVE - record % 3).astype(np.uint8),
    'places': places, 'values': wave[places, 0], 'label': np.array(wave.mean() > 0, np.int32),
    'severity': np.array(min(1.0, step / 4), np.float32),
  }


def _dataset(split, *, is_training):
  num_words, count = (WORDS, 1000) if split == 'train' else (WORDS, 21) if split == 'short' else (WORDS - 2, 13)
  spec = {**INPUTS, **TARGETS, 'words': Field((num_words, 2), 'float32'), 'words_valid': Field((num_words,), 'uint8')}
  prepare = functools.partial(_prepare, num_words=num_words, is_training=is_training)
  return Dataset(Numbers(count), spec, prepare)


def _forward(batch, *, is_training, capture=False):
  batch_size = batch['words'].shape[0]
  jax.random.split(batch['key'][0])  # typed keys, one for each example
  place = jnp.broadcast_to(jnp.linspace(-1, 1, WAVE)[:, None], (batch_size, WAVE, 1))
  inputs = pack({
    'words': InputArray(batch['words'], None, batch['words_valid']),
    'wave': InputArray(
      jnp.concatenate([batch['wave'], fourier_features(place, 4, (WAVE,))], -1), None, batch['wave_valid']),
  }, min_padding=2)
  latents, captured = encode(
    Encoder(4, 16), Processor(1, 1, num_heads=2), inputs, is_training=is_training, capture=capture)
  asked = fourier_features(2 * batch['places'][..., None] / WAVE - 1, 4, (WAVE,))
  values, _ = Decoder(1, name='values')(asked, latents, is_training=is_training)
  label, _ = Decoder(1, name='label')(learned_query(1, 8, batch_size), latents, is_training=is_training)
  outputs = {'values': values[..., 0], 'logit': label[:, 0, 0]}
  return {**outputs, 'captured': captured} if capture else outputs


def _measure(outputs, batch):
  weight = batch['mask'][:, None] * jnp.ones_like(batch['values'])
  error = jnp.sum(weight * jnp.square(outputs['values'] - batch['values']))
  entropy = jnp.logaddexp(0, outputs['logit']) - outputs['logit'] * batch['label']
  return {
    'loss': (error / POINTS + jnp.sum(batch['mask'] * entropy), jnp.sum(batch['mask'])),
    'square_error': (error, jnp.sum(weight)),
    'severity': (jnp.sum(batch['mask'] * batch['severity']), jnp.sum(batch['mask'])),
  }


def _per_example(outputs, batch):
  return {'said': outputs['values'], 'true': batch['values'], 'logit': outputs['logit'], 'label': batch['label']}


def _scores(rows):
  found = {'spearman': spearmanr(rows['said'].ravel(), rows['true'].ravel())[0]}
  is_both = 0 < rows['label'].mean() < 1
  return {**found, 'map': average_precision_score(rows['label'], rows['logit']) if is_both else float('nan'),
          'rows': len(rows['label'])}


TASK = Task(INPUTS, TARGETS, _forward, _measure, _dataset, _per_example, _scores)


def _config(**changes):
  config = overrides.load('configs/digits.py:debug')
  config.update_from_flattened_dict({
    'num_steps': 8, 'batch_size': 16, 'eval.every_steps': 4, 'eval.batch_size': 8, 'checkpoint.every_steps': 4,
    'log.every_steps': 1, **changes})
  config.eval.splits = ('short', 'long')
  config.eval.final_splits = ('long',)
  config.checkpoint.best = 'lowest long/square_error'
  return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('hard') / 'run'
  assert loop.train(_config(), str(workdir), TASK) == 0
  return workdir


def test_the_log_has_every_figure_of_every_split_and_the_end_is_written_as_such(workdir):
  history = read_history(str(workdir))
  evaluations = [line for line in history if 'short/loss' in line]
  names = {f'{split}/{name}' for split in ('short', 'long')
           for name in ('loss', 'square_error', 'severity', 'spearman', 'map', 'rows')}
  assert [set(line) for line in evaluations] == [names | {'step'}] * 2
  assert [line['step'] for line in evaluations] == [4, 8]
  last = history[-1]
  assert set(last) == {'step', 'checkpoint/best_step', 'run/finished', *(name for name in names if 'long' in name)}
  assert all(line['short/rows'] == 20 and line['long/rows'] == 12 for line in evaluations)  # one of each is torn
  assert all(-1 <= line['long/spearman'] <= 1 and 0 <= line['short/map'] <= 1 for line in evaluations)


def test_the_best_checkpoint_is_the_one_with_the_lowest_value(workdir):
  history = read_history(str(workdir))
  errors = {line['step']: line['long/square_error'] for line in history if 'short/loss' in line}
  assert history[-1]['checkpoint/best_step'] == min(errors, key=errors.get)
  assert history[-1]['long/square_error'] == pytest.approx(min(errors.values()), rel=1e-6)


def test_a_curriculum_follows_the_step(workdir):
  severity = [line['train/severity'] for line in read_history(str(workdir)) if 'train/severity' in line]
  assert severity == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_the_figures_of_a_run_are_those_of_its_evaluation_on_any_batch_size(workdir):
  config = _config(**{'eval.batch_size': 5})
  values = evaluate_workdir(config, str(workdir), TASK, splits=('long',), checkpoint='best')
  last = read_history(str(workdir))[-1]
  assert values['examples'] == 12
  for name in ('loss', 'square_error', 'spearman', 'map', 'rows'):
    assert values[f'long/{name}'] == pytest.approx(last[f'long/{name}'], rel=1e-5)


def test_two_splits_are_kept_in_config_json_and_change_what_is_evaluated(workdir):
  assert json.loads((workdir / 'config.json').read_text())['eval']['splits'] == ['short', 'long']


def test_a_best_figure_that_no_score_is_called_is_warned_of_at_the_first_evaluation(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(logging.getLogger('absl'), 'propagate', True)
  config = _config(**{'num_steps': 1, 'optimizer.warmup_steps': 0})
  config.checkpoint.best = 'highest short/spaerman'
  assert loop.train(config, str(tmp_path / 'run'), TASK) == 0
  assert 'checkpoint.best: short/spaerman was not measured; there are short/loss' in caplog.text


@pytest.mark.parametrize('experiment', ['masked_lm', 'optical_flow'])
def test_a_task_without_data_of_its_own_trains_two_steps_on_made_up_arrays(experiment, tmp_path):
  config = overrides.load(f'configs/{experiment}.py:debug')
  config.update_from_flattened_dict({
    'num_steps': 2, 'batch_size': 8, 'eval.batch_size': 8, 'log.every_steps': 1, 'optimizer.warmup_steps': 0})
  config.checkpoint.best = 'lowest validation/loss'
  task = make_task(config)
  made_up = synthetic.dataset({**task.inputs, **task.targets}, 16)
  assert loop.train(config, str(tmp_path), task._replace(dataset=lambda split, *, is_training: made_up)) == 0
  losses = [line['train/loss'] for line in read_history(str(tmp_path)) if 'train/loss' in line]
  assert len(losses) == 2 and np.isfinite(losses).all()


def _spoilt(**changes):
  return TASK._replace(**changes)


@pytest.mark.parametrize('task, message', [
  (_spoilt(measure=lambda outputs, batch: {'loss': jnp.sum(outputs['logit'])}), r"returns 'loss' as \(sum, weight\)"),
  (_spoilt(measure=lambda outputs, batch: {'error': (0.0, 1.0)}), "measure returns a dict with 'loss'"),
  (_spoilt(measure=lambda outputs, batch: {'loss': outputs['logits']}), 'KeyError: .logits.*test_hard_task.py, line'),
  (_spoilt(targets={**TARGETS, 'word': Field((), 'int32')}), "split 'train' has no entry 'word', which the task reads"),
  (_spoilt(targets={**TARGETS, 'label': Field((), 'int64')}), "'label' is .* int32 in split 'train', but .* int64"),
  (_spoilt(forward=lambda batch, **_: {'logit': batch['words'] @ batch['wave']}), 'on a batch of its data: Value'),
  (_spoilt(per_example=lambda outputs, batch: {'mean': jnp.mean(outputs['logit'])}), "per_example returns 'mean' of"),
], ids=['scalar', 'no loss', 'KeyError', 'no entry', 'dtype', 'shapes', 'per_example'])
def test_a_fault_of_a_task_is_told_in_one_line_before_anything_is_written(task, message, tmp_path):
  with pytest.raises(UserError, match=message) as caught:
    loop.train(_config(), str(tmp_path / 'run'), task)
  assert '\n' not in str(caught.value) and list(tmp_path.iterdir()) == []
