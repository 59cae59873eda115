"""Every config and variant, the laws about them, and their way into `config.json` and back."""

from __future__ import annotations

import importlib
import itertools
import pathlib
import re
import shlex

import jax
import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from perceiver_jax.commands import predict, train
from perceiver_jax.config import defaults, overrides
from perceiver_jax.config.saved import claim, differences, load_config, save_config
from perceiver_jax.config.values import check, flatten
from perceiver_jax.inference.model import template
from perceiver_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
FAMILIES = {
  path.stem: importlib.import_module(f'configs.{path.stem}')
  for path in sorted((ROOT / 'configs').glob('*.py')) if path.stem != '__init__'
}
VARIANTS = [(family, variant) for family, module in FAMILIES.items() for variant in ('', *module.VARIANTS)]
PAIRS = [
  (family, ','.join(pair)) for family, module in FAMILIES.items() for pair in itertools.combinations(module.VARIANTS, 2)
]
REPRODUCTION = (ROOT / 'docs' / 'reproduction.md').read_text()
REPRODUCED = re.findall(r'^# .*?([\d,]+) parameters\npython (train\.py (?:.*\\\n)*.*)$', REPRODUCTION, re.MULTILINE)
LISTED = [
  (family, *row) for family in ('imagenet', 'cifar10')
  for row in re.findall(r'^  ([a-z]\S+) .*? (\d+(?:,\d{3})+) ', FAMILIES[family].__doc__, re.MULTILINE)
]


def _num_parameters(config: ConfigDict) -> int:
  """Of the model that a command trains; nothing is computed."""
  check(config)
  params, _ = template(config)
  return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize('family, variant', VARIANTS + PAIRS)
def test_every_variant_builds_a_locked_config_with_the_keys_of_its_family(family, variant):
  config = FAMILIES[family].get_config(variant)
  keys = flatten(config).keys()
  assert config.is_locked and config.model.is_locked
  assert keys == flatten(FAMILIES[family].get_config()).keys()
  assert keys >= flatten(defaults.training()).keys() | {f'model.{key}' for key in defaults.latents()}
  if config.task == 'image_classification':
    assert keys == flatten(defaults.get_config()).keys()


@pytest.mark.parametrize('family, variant', VARIANTS + PAIRS)
def test_every_variant_has_sizes_that_fit(family, variant):
  config = FAMILIES[family].get_config(variant)
  model = config.model
  assert model.latent_channels % model.num_self_heads == 0
  assert model.num_blocks % model.num_cross_attends == 0
  assert config.batch_size % 8 == config.eval.batch_size % 8 == 0
  assert config.optimizer.warmup_steps < config.num_steps


@pytest.mark.parametrize('family', FAMILIES)
def test_every_variant_but_the_default_changes_something(family):
  module = FAMILIES[family]
  default = flatten(module.get_config())
  assert flatten(module.get_config(module.VARIANTS[0])) == default
  assert [v for v in module.VARIANTS[1:] if flatten(module.get_config(v)) == default] == []


@pytest.mark.parametrize('family', FAMILIES)
def test_a_debug_variant_is_long_enough_to_try_everything_and_no_longer(family):
  config = FAMILIES[family].get_config('debug')
  assert (config.num_steps, config.checkpoint.every_steps, config.eval.every_steps) == (20, 5, 10)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_words_of_a_variant_come_in_any_order(family):
  module = FAMILIES[family]
  words = [word for word in module.VARIANTS if word != 'io']
  expected = flatten(module.get_config(','.join(words)))
  assert flatten(module.get_config(', '.join(reversed(words)))) == expected


@pytest.mark.parametrize('family', FAMILIES)
def test_a_config_says_its_paper_command_cost_result_and_variants(family):
  module = FAMILIES[family]
  for word in ('Paper: ', 'Command: ', 'Cost', 'xpected', 'Measured: '):
    assert word in module.__doc__, word
  described = module.__doc__.partition('Variants, joined by commas: ')[2]
  assert [word for word in module.VARIANTS if not re.search(rf'\b{word}\b', described)] == []


@pytest.mark.parametrize('family', FAMILIES)
def test_the_command_in_a_config_is_one_that_is_understood(family, monkeypatch):
  monkeypatch.chdir(ROOT)
  command = re.search(r'^Command: python ((?:.*\\\n)*.*)$', FAMILIES[family].__doc__, re.MULTILINE)
  arguments = shlex.split(command[1].replace('\\\n', ''))
  if arguments[:2] == ['-m', 'perceiver_jax']:  # there is no training data for it yet
    model, path, inputs, *_ = predict._read(arguments[2:]).args
    assert (ROOT / 'perceiver_jax' / 'interop' / 'released' / model).is_dir() and path is None and inputs
  else:
    config, workdir, profile_steps, _ = train._read(arguments).args
    assert config.data.num_classes and workdir.startswith('runs/') and profile_steps == 0


@pytest.mark.parametrize('total, command', REPRODUCED)
def test_a_command_that_reproduces_a_figure_trains_a_model_of_the_size_printed(total, command, monkeypatch):
  monkeypatch.chdir(ROOT)
  config, workdir, *_ = train._read(shlex.split(command.replace('\\\n', ' '))).args
  assert f'{_num_parameters(config):,}' == total
  assert (config.data.name, config.data.path) == ('tfds_images', '/data/imagenet2012')
  assert REPRODUCTION.count(f'--workdir={workdir} ') == 1 + REPRODUCTION.count(f'eval.py --workdir={workdir} ')


def test_every_printed_figure_has_its_command():
  commands_of_the_page = re.findall(r'^python train\.py', REPRODUCTION, re.MULTILINE)
  assert len(REPRODUCED) == len(commands_of_the_page) - 2  # a trial, and one for speed
  in_tables = re.findall(r'^\|.*?\| ((?:\d+,\d{3},\d{3})) \|', REPRODUCTION, re.MULTILINE)
  assert set(in_tables) == {total for total, _ in REPRODUCED} - {'213,082,618'}


def test_the_recipes_of_both_papers():
  steps_of_110_epochs, steps_of_120_epochs = 137_625, 150_136
  for variant, steps, peak_lr, schedule, mixing in (
    ('fourier', steps_of_110_epochs, 2e-3, 'constant_cosine', 'half_and_half'),
    ('conv_pool', steps_of_110_epochs, 2e-3, 'constant_cosine', 'half_and_half'),
    ('perceiver', steps_of_120_epochs, 4e-3, 'step_decay', 'none'),
    ('perceiver_learned', steps_of_120_epochs, 4e-3, 'step_decay', 'none'),
    ('vit,permuted', steps_of_120_epochs, 4e-3, 'step_decay', 'none'),
    ('config_b', 131_000, 2e-3, 'constant_cosine', 'half_and_half'),
    ('conv,config_b', 131_000, 2e-4, 'constant_cosine', 'half_and_half'),
  ):
    config = FAMILIES['imagenet'].get_config(variant)
    optimizer = config.optimizer
    assert (config.num_steps, optimizer.peak_lr, optimizer.schedule, config.data.mixing) == (
      steps, peak_lr, schedule, mixing), variant
    assert (config.batch_size, optimizer.name, optimizer.weight_decay, optimizer.max_norm) == (1024, 'lamb', 0.1, 10.0)
    assert f'{steps:,}' in FAMILIES['imagenet'].__doc__


@pytest.mark.parametrize('family, variant, total', LISTED)
def test_a_config_lists_its_variants_with_their_sizes(family, variant, total):
  assert f'{_num_parameters(FAMILIES[family].get_config(variant)):,}' == total


def test_the_lists_of_variants_are_found():
  assert {family: sum(row[0] == family for row in LISTED) for family in ('imagenet', 'cifar10')} == {
    'imagenet': 15, 'cifar10': 6}


def test_a_variant_that_is_not_offered_is_refused_with_the_nearest():
  with pytest.raises(ValueError, match=r"'perciever'. Did you mean 'perceiver'\? There are: io, perceiver"):
    defaults.words('io,perciever', ['io', 'perceiver'])


def test_a_config_of_five_lines_trains_on_images_of_your_own(tmp_path):
  (tmp_path / 'flowers.py').write_text('\n'.join([
    'from configs import images',
    "def get_config(variant=''):",
    '  config = images.get_config(variant)',
    "  config.data.update({'path': 'flowers/', 'num_classes': 5})",
    '  return config',
  ]))
  config = overrides.load(f'{tmp_path}/flowers.py:perceiver')
  assert config.is_locked
  assert (config.data.path, config.data.num_classes, config.model.num_cross_attends) == ('flowers/', 5, 8)


def test_every_default_has_a_comment():
  source = (ROOT / 'perceiver_jax' / 'config' / 'defaults.py').read_text()
  keys = {key.rpartition('.')[2] for key in flatten(defaults.get_config())}
  commented = set(re.findall(r"^ +(?:config\.|')(\w+)'?(?: =|:) .*  # \S", source, re.MULTILINE))
  assert keys - commented == set()


def test_a_key_that_may_be_unset_is_a_placeholder():
  config = defaults.get_config()
  for key, value in flatten(config).items():
    if value is None:
      section, _, leaf = key.rpartition('.')
      # None itself could not be overridden.
      assert (config[section] if section else config).get_type(leaf) in (int, float, str, tuple), key


def _unvaried(configs: list[dict], text: str) -> list[str]:
  """The keys with one value in all `configs` that have them, and set nowhere in `text` as `config.key = value`."""
  values: dict[str, set[str]] = {}
  for config in configs:
    for key, value in config.items():
      values.setdefault(key, set()).add(repr(value))
  constant = {key for key in values if len(values[key]) == 1}
  return sorted(key for key in constant if not re.search(rf'\bconfig\.{re.escape(key)} ?=[^=]', text))


def test_law_7_something_varies_every_key():
  """A variant, a README command, or a test; but not the tests of the command line, which only parse what they set."""
  own = {'test_train_and_eval.py', 'test_configs.py'}
  files = [path for path in (ROOT / 'tests').rglob('*.py') if path.name not in own]
  files += [ROOT / 'README.md', ROOT / 'Makefile', ROOT / 'benchmarks' / 'survive.py']
  configs = [defaults.get_config()] + [FAMILIES[family].get_config(variant) for family, variant in VARIANTS]
  text = '\n'.join(path.read_text() for path in files)
  unvaried = _unvaried([flatten(config) for config in configs], text)
  assert not unvaried, f'nothing ever sets these keys; drop them, or test what they change: {", ".join(unvaried)}'


def test_law_7_is_noticed_when_broken():
  config = {'seed': 0, 'model.used': 1, 'model.told': 1, 'model.unused': 1}
  configs = [config, {**config, 'model.used': 2}]
  text = 'config.seed = 3\nassert config.model.unused == 1\ntrain.py --config.model.told=4'
  assert _unvaried(configs, text) == ['model.unused']


@pytest.mark.parametrize('family, variant', VARIANTS)
def test_every_config_survives_json(family, variant, tmp_path):
  config = FAMILIES[family].get_config(variant)
  save_config(config, tmp_path)
  loaded = load_config(tmp_path)
  assert loaded.is_locked and loaded.to_dict() == config.to_dict()
  assert differences(loaded, config) == []


def test_values_survive_json_with_their_types(tmp_path):
  values = {
    'float': 0.1 + 0.2, 'tiny': 5e-324, 'whole': 1.0, 'huge': 1e300, 'int': 2**70, 'bool': True, 'text': 'ä\n"',
    'none': None, 'tuple': (1, 2.0, ('a', (), False)),
    'empty': ConfigDict(), 'unset': placeholder(str), 'set': placeholder(float),
    'section': {'tuple': ()}, 'tables': ({'a': (1,)},),
  }
  config = ConfigDict(values)
  config.set = 2
  save_config(config, tmp_path)
  loaded = load_config(tmp_path).to_dict()
  expected = {**values, 'empty': {}, 'unset': None, 'set': 2.0}
  assert loaded == expected
  assert {k: type(v) for k, v in loaded.items()} == {k: type(v) for k, v in expected.items()}
  assert [type(value) for value in loaded['tuple'] + loaded['tuple'][2]] == [int, float, tuple, str, tuple, bool]


def test_a_value_that_could_not_be_read_back_is_refused_by_name(tmp_path):
  config = ConfigDict({'data': {'path': pathlib.Path('x')}})
  with pytest.raises(UserError, match=r'config\.data\.path is PosixPath'):
    save_config(config, tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_differences_name_the_keys_and_both_values():
  saved = ConfigDict({'optimizer': {'peak_lr': 0.002, 'name': 'lamb'}, 'old': (1, 2), 'sizes': (3, 4)})
  current = ConfigDict({'optimizer': {'peak_lr': 0.001, 'name': 'lamb'}, 'new': None, 'sizes': [3, 4]})
  assert differences(saved, current) == [
    'new: absent in the workdir, None now',
    'old: (1, 2) in the workdir, absent now',
    'optimizer.peak_lr: 0.002 in the workdir, 0.001 now',
  ]


@pytest.mark.parametrize('text', ['', '{"seed": ', '[1]', b'\xff'])
def test_a_damaged_config_json_is_named(tmp_path, text):
  (tmp_path / 'config.json').write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(UserError, match=r'config\.json is damaged'):
    load_config(tmp_path)


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'cannot write .*file/run/config\.json'):
    save_config(defaults.get_config(), tmp_path / 'file' / 'run')


def test_a_workdir_belongs_to_one_config(tmp_path):
  config = FAMILIES['digits'].get_config('debug')
  claim(config, tmp_path / 'run', is_new=True)
  claim(config, tmp_path / 'run', is_new=False)
  before = (tmp_path / 'run' / 'config.json').read_bytes()
  config.optimizer.peak_lr = 0.5
  with pytest.raises(UserError, match=r'optimizer\.peak_lr: 0\.002 in the workdir, 0\.5 now'):
    claim(config, tmp_path / 'run', is_new=False)
  assert (tmp_path / 'run' / 'config.json').read_bytes() == before


@pytest.mark.parametrize(('key', 'value'), [
  ('num_steps', 0), ('eval.every_steps', 0), ('log.every_steps', -1), ('eval.batch_size', 0), ('micro_batches', 0),
  ('model.num_latents', 0), ('model.latent_channels', 0), ('model.num_self_attends_per_block', 0),
  ('model.position.num_bands', 0), ('model.position.channels', 0), ('model.dropout_prob', 1.0),
  ('model.num_blocks', -1), ('model.self_widening', 0), ('model.stem.patch_size', 0),
  ('model.attention_dropout_prob', -0.1), ('ema_decay', 2.0), ('label_smoothing', -1.0), ('checkpoint.keep_last', 0),
  ('optimizer.warmup_steps', -1), ('max_skipped', 0), ('optimizer.weight_decay', -1.0),
])
def test_a_number_out_of_its_range_is_named(key, value):
  config = FAMILIES['digits'].get_config('debug')
  check(config)
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=f'^{key} is {value}; it must be'):
    check(config)


def test_a_model_without_a_latent_transformer_and_a_run_without_warm_up_are_in_range():
  config = FAMILIES['digits'].get_config('debug')
  config.model.num_blocks = config.optimizer.warmup_steps = 0
  check(config)
