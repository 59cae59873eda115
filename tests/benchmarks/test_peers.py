"""The benchmark of other people's models: equal work, paired rounds, and messages for what is not there."""

from __future__ import annotations

import functools
import io
import json
import sys

import haiku as hk
import jax
import numpy as np
import pytest

from benchmarks import peer_jax, peer_torch, peer_work, peer_worker, peers
from benchmarks.peer_work import Folders, Work
from benchmarks.timing import Taken
from perceiver_jax.interop import huggingface
from perceiver_jax.tasks import image_classification
from perceiver_jax.types import UserError
from tests.interop.huggingface_models import torch

pytestmark = pytest.mark.usefixtures('quick_compilation')

TINY = Work(
  'io_step', batch=2, size=4, num_bands=2, num_latents=3, latent_channels=8, num_heads=2, num_blocks=2, num_layers=1,
  num_classes=5, flow_size=(2, 3), flow_channels=4, num_flow_latents=3, flow_latent_channels=8)
SIZES = [f'--{flag}={getattr(TINY, name)}' for flag, name in peers.SIZES.items()]
KEYS = {
  'what', 'implementation', 'batch', 'num_blocks', 'num_layers', 'seconds', 'min', 'max', 'cpu_seconds', 'ratio',
  'ratio_min', 'ratio_max', 'cpu_ratio', 'compile_seconds', 'compile_cpu_seconds', 'temp_bytes', 'peak_rss_bytes',
  'parameters'}


@pytest.mark.slow
def test_each_in_a_process_of_its_own_from_the_command_to_the_table(tmp_path, capsys):
  path = tmp_path / 'results' / 'peers.json'
  assert peers.main([
    'peers', '--what=io_forward', '--peers=huggingface', '--threads=1', '--repeats=1', f'--json={path}', *SIZES]) == 0
  result = json.loads(path.read_text())
  ours, theirs = result['rows']
  assert [row['implementation'] for row in (ours, theirs)] == ['ours', 'huggingface']
  for row in (ours, theirs):
    assert set(row) == KEYS
    assert row['min'] == row['seconds'] == row['max'] > 0
    assert row['ratio'] == pytest.approx(row['seconds'] / ours['seconds'])
    assert row['cpu_ratio'] == pytest.approx(row['cpu_seconds'] / ours['cpu_seconds'])
    assert row['peak_rss_bytes'] > 2**26
  assert ours['parameters'] == theirs['parameters']
  assert ours['compile_seconds'] > 0 and theirs['compile_seconds'] is None
  assert {'python', 'jax', 'torch', 'transformers'} <= set(result['versions'])
  assert result['settings']['num_latents'] == 3
  printed = capsys.readouterr()
  assert '| io_forward | huggingface |' in printed.out
  assert 'Without official' in printed.err


def test_hugging_faces_model_computes_what_ours_does_from_the_same_weights():
  theirs = peer_torch.huggingface(TINY, Folders()).eval()
  config = peer_jax.config_of(TINY)
  config.model.gelu = 'exact'  # as Torch's is
  model = hk.transform_with_state(image_classification.make(config).forward)
  [image] = peer_jax.arrays(TINY)
  template = jax.eval_shape(
    lambda key: model.init(key, {'image': image, 'mask': np.ones(2)}, is_training=True), jax.random.key(0))
  weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
  params, state = huggingface.convert(weights, config, template)
  apply = jax.jit(functools.partial(model.apply, is_training=False))
  found, _ = apply(params, state, None, {'image': image})
  with torch.no_grad():
    np.testing.assert_allclose(found['logits'], theirs(torch.from_numpy(image)).numpy(), atol=1e-5)


@pytest.mark.parametrize('what', peer_work.WHATS)
def test_ours_runs_every_work(what):
  work = TINY._replace(what=what)
  inputs = peer_jax.arrays(work)
  model = hk.transform(peer_jax.ours(work))
  params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  outputs = jax.eval_shape(model.apply, params, jax.random.key(0), *inputs)
  assert outputs.shape == {
    'io': (2, 5), 'v1': (2, 5), 'flow_encoder': (2, 3, 8), 'flow_decoder': (2, 6, 2)}[work.kind]


def test_v1_has_a_cross_attend_for_every_block_and_io_one():
  for what, names in (('io_step', {'cross_attend_0'}), ('v1_step', {'cross_attend_0', 'cross_attend_1'})):
    work = TINY._replace(what=what)
    model = hk.transform(peer_jax.ours(work))
    params = jax.eval_shape(model.init, jax.random.key(0), *peer_jax.arrays(work))
    assert {part for name in params for part in name.split('/') if part.startswith('cross_attend_')} == names
  config = peer_jax.config_of(TINY._replace(what='v1_step', num_blocks=3, remat='dots'))
  assert (config.model.num_cross_attends, config.remat) == (3, 'dots')


def test_a_step_of_torch_leaves_a_gradient_everywhere():
  built = peer_torch.build('huggingface', TINY, Folders(), None)
  built['run']()
  parameters = list(built['run'].args[1].parameters())
  assert built['parameters'] == sum(parameter.numel() for parameter in parameters)
  assert all(parameter.grad is not None for parameter in parameters)


def test_a_worker_says_what_it_built_and_answers_every_line():
  argument = {'implementation': 'ours', 'work': TINY._replace(what='flow_encoder_forward')._asdict(),
              'folders': Folders()._asdict(), 'num_threads': 1}
  answers = io.StringIO()
  assert peer_worker.main(json.dumps(argument), io.StringIO('\n\n'), answers) == 0
  built, *taken = map(json.loads, answers.getvalue().splitlines())
  assert built['parameters'] > 0 and set(built['versions']) == {'jax', 'dm-haiku'}
  assert len(taken) == 2
  assert all(set(one) == {'seconds', 'cpu_seconds', 'peak_rss_bytes'} for one in taken)


def test_a_ratio_is_a_peers_time_to_ours_of_the_same_round():
  taken = {'ours': [Taken(1.0, 1.0), Taken(4.0, 2.0)], 'official': [Taken(3.0, 8.0), Taken(8.0, 2.0)]}
  row = peers.row(TINY, 'official', taken, {'parameters': 7})
  assert (row['ratio'], row['ratio_min'], row['ratio_max'], row['cpu_ratio']) == (2.5, 2.0, 3.0, 4.5)
  assert (row['seconds'], row['min'], row['max'], row['cpu_seconds']) == (5.5, 3.0, 8.0, 5.0)
  assert row['parameters'] == 7
  assert peers.row(TINY, 'ours', taken, {})['ratio'] == 1.0


def test_what_is_not_installed_is_named_with_how_to_install_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'perceiver_pytorch', None)
  with pytest.raises(UserError, match='pip install --no-deps --target=SITE perceiver-pytorch'):
    peer_torch.build('perceiver_pytorch', TINY, Folders(), None)


def test_a_worker_that_cannot_build_says_why(tmp_path):
  for implementation, name in (('official', 'deepmind-research'), ('perceiver_io', 'krasserm/perceiver-io')):
    argument = {'implementation': implementation, 'work': TINY._asdict(), 'folders': Folders()._asdict(),
                'num_threads': None}
    answers = io.StringIO()
    assert peer_worker.main(json.dumps(argument), io.StringIO('\n'), answers) == 1
    assert f'{name}' in json.loads(answers.getvalue())['error']


@pytest.mark.parametrize(('flag', 'message'), [
  ('--what=io_backward', "no 'io_backward'"), ('--peers=ours', "no peer 'ours'"), ('--peers=flax', "no peer 'flax'")])
def test_what_there_is_not_is_refused(tmp_path, capsys, flag, message):
  assert peers.main(['peers', f'--json={tmp_path / "x.json"}', flag]) == 2
  assert message in capsys.readouterr().err


def test_a_word_without_a_pass_means_both():
  assert peers._whats(['v1', 'flow_encoder_step']) == ['v1_forward', 'v1_step', 'flow_encoder_step']


def test_peers_are_at_hand_where_flags_say(tmp_path):
  assert 'official' not in peers.at_hand(Folders())
  assert {'official', 'perceiver_io', 'perceiver_pytorch'} <= set(peers.at_hand(Folders(*[str(tmp_path)] * 3)))
