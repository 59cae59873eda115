"""What a newcomer's machine relies on: the pins, the wheel, the Makefile, and tests that work offline."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import perceiver_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHONS = ('3.11', '3.12', '3.13')
PACKAGES = ('perceiver_jax', 'configs')            # in the clone; the wheel holds the first
BASE = {'chex', 'jax', 'dm-haiku', 'numpy'}


def _requirements(name: str) -> list[Requirement]:
  lines = (line.partition('#')[0].strip() for line in (ROOT / name).read_text().splitlines())
  return [Requirement(line) for line in lines if line and not line.startswith('-')]


def _names(requirements: list[Requirement]) -> set[str]:
  return {canonicalize_name(requirement.name) for requirement in requirements}


def _extras() -> list[Requirement]:
  extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
  lines = [line for lines in extras.values() for line in lines]
  return [Requirement(line) for line in lines if not line.startswith('perceiver_jax')]


def _imported_modules(path: pathlib.Path) -> set[str]:
  """Returns the top-level names that a file imports, anywhere in it, but for the standard library and our own."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and not node.level:
      names.add(node.module)
  ours = {*PACKAGES, 'benchmarks', 'examples', 'tests', 'conftest'}
  return {name.partition('.')[0] for name in names} - sys.stdlib_module_names - ours


def _imported_distributions(*places: str) -> dict[str, str]:
  """Returns {distribution: a file that imports it}. A module nobody installed counts as a distribution of its name."""
  files = [file for place in places for file in [ROOT / place, *(ROOT / place).rglob('*.py')] if file.is_file()]
  installed = importlib.metadata.packages_distributions()
  return {
    canonicalize_name(installed.get(module, [module])[0]): str(file.relative_to(ROOT))
    for file in files for module in _imported_modules(file)
  }


@pytest.mark.parametrize('name', ['requirements.txt', 'requirements-test.txt', 'requirements-tf.txt'])
@pytest.mark.parametrize('python', PYTHONS)
def test_each_python_gets_exactly_one_exact_version_of_each_requirement(name, python):
  requirements = _requirements(name)
  chosen = [r for r in requirements if r.marker is None or r.marker.evaluate({'python_version': python})]
  assert sorted(canonicalize_name(r.name) for r in chosen) == sorted(_names(requirements))
  for requirement in chosen:
    assert re.fullmatch(r'==[\w.]+', str(requirement.specifier)), f'{requirement} is not pinned'


def test_this_environment_has_the_pinned_versions():
  for requirement in _requirements('requirements.txt'):
    if requirement.marker is None or requirement.marker.evaluate():
      installed = importlib.metadata.version(requirement.name)
      assert requirement.specifier.contains(installed), f'{requirement.name} {installed}, not {requirement.specifier}'


def test_every_library_we_import_is_declared():
  declared = _names(_requirements('requirements.txt') + _requirements('requirements-tf.txt') + _extras())
  imported = _imported_distributions(*PACKAGES, 'train.py', 'eval.py')
  assert {'jax', 'dm-haiku', 'numpy'} <= imported.keys()
  assert {name: file for name, file in imported.items() if name not in declared} == {}


def test_every_library_the_tests_import_is_declared():
  comes_with_pytest = {'packaging'}
  declared = _names(_requirements('requirements.txt') + _requirements('requirements-test.txt')) | comes_with_pytest
  assert {name: file for name, file in _imported_distributions('tests').items() if name not in declared} == {}


def test_every_declared_library_is_imported():
  version_only = {'jaxlib'}  # jax imports it; pinned so that the two move together
  declared = _names(_requirements('requirements.txt'))
  assert declared - version_only - _imported_distributions(*PACKAGES, 'train.py', 'eval.py').keys() == set()


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> zipfile.ZipFile:
  """Our wheel, built offline from a copy, for setuptools writes beside what it builds."""
  copy = tmp_path_factory.mktemp('clone')
  for name in PACKAGES:
    shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('pyproject.toml', 'requirements.txt', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, copy)
  command = [sys.executable, '-m', 'pip', 'wheel', '.', '--no-deps', '--no-build-isolation', '--no-index']
  done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  return zipfile.ZipFile(next(copy.glob('*.whl')))


def _read(wheel: zipfile.ZipFile, name: str) -> str:
  """Returns a file of the wheel's dist-info folder."""
  return wheel.read(next(file for file in wheel.namelist() if file.endswith(f'.dist-info/{name}'))).decode()


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
  ours = {str(path.relative_to(ROOT)) for path in (ROOT / 'perceiver_jax').rglob('*')
          if path.is_file() and '__pycache__' not in path.parts}
  assert {'perceiver_jax/core/perceiver.py', 'perceiver_jax/py.typed'} <= ours
  assert {name for name in wheel.namelist() if '.dist-info/' not in name} == ours


def test_the_wheel_requires_four_libraries_by_lower_bounds_and_the_rest_by_extras(wheel):
  metadata = _read(wheel, 'METADATA')
  required = [Requirement(line) for line in re.findall(r'^Requires-Dist: (.*)$', metadata, re.MULTILINE)]
  assert _names([each for each in required if each.marker is None]) == BASE
  pinned = {canonicalize_name(each.name): each.specifier for each in _requirements('requirements.txt')}
  for each in required:
    name = canonicalize_name(each.name)
    assert str(each.specifier).startswith('>=') or name == 'perceiver-jax'
    version = re.sub('^==', '', str(pinned.get(name, '')))
    assert not version or each.specifier.contains(version), f'{each} leaves out the version that the tests ran with'
  assert f'Version: {perceiver_jax.__version__}' in metadata


HOOK = """
import importlib.abc, runpy, sys
refused = set(sys.argv[1].split(','))
class Refuse(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in refused:
      raise ModuleNotFoundError(f'{name} does not come with the base')
sys.meta_path.insert(0, Refuse())
import pkgutil, importlib, perceiver_jax.core, perceiver_jax.adapters
for package in (perceiver_jax.core, perceiver_jax.adapters):
  for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f'{package.__name__}.{module.name}')
runpy.run_path('examples/resampler.py', run_name='__main__')
"""


def _modules_of(distributions: set[str]) -> set[str]:
  """The modules of some distributions and of what they require."""
  found: set[str] = set()
  todo = set(distributions)
  while todo:
    name = todo.pop()
    found.add(name)
    for line in importlib.metadata.requires(name) or []:
      each = Requirement(line)
      if 'extra' not in str(each.marker or '') and (each.marker is None or each.marker.evaluate()):
        todo |= {canonicalize_name(each.name)} - found
  return {module for module, homes in importlib.metadata.packages_distributions().items()
          if {canonicalize_name(home) for home in homes} & found}


def test_the_resampler_and_every_block_need_the_base_alone():
  refused = importlib.metadata.packages_distributions().keys() - _modules_of(BASE) - {'perceiver_jax'}
  assert {'optax', 'orbax', 'cv2', 'ml_collections', 'grain', 'matplotlib'} <= refused
  done = subprocess.run(
    [sys.executable, '-c', HOOK, ','.join(refused)], cwd=ROOT, capture_output=True, text=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=False)
  assert (done.returncode, done.stdout) == (0, '(2, 64, 256)\n'), done.stderr


def test_the_readme_shows_the_resampler_as_it_is():
  body = (ROOT / 'examples' / 'resampler.py').read_text().partition('\n\n')[2].rstrip()
  assert f'```python\n{body}\n```' in (ROOT / 'README.md').read_text()


def test_the_packages_names_are_loaded_when_they_are_used():
  assert set(perceiver_jax.__all__) <= set(dir(perceiver_jax))
  for name in perceiver_jax.__all__:
    assert getattr(perceiver_jax, name).__name__ == name
  with pytest.raises(AttributeError, match="no attribute 'Encoders'"):
    perceiver_jax.Encoders  # noqa: B018


def test_the_commands_of_the_wheel_exist(wheel):
  commands = dict(re.findall(r'^(\S+) = (\S+)$', _read(wheel, 'entry_points.txt'), re.MULTILINE))
  assert commands.keys() == {'perceiver'}
  for target in commands.values():
    module, function = target.split(':')
    assert callable(getattr(importlib.import_module(module), function))


def _makefile_targets() -> set[str]:
  return set(re.findall(r'^([a-z][a-z-]*):', (ROOT / 'Makefile').read_text(), re.MULTILINE))


def test_every_make_target_that_we_speak_of_exists():
  readme = (ROOT / 'README.md').read_text()
  code = '\n'.join(re.findall(r'```.*?```|`[^`\n]+`', readme, re.DOTALL))
  spoken = set(re.findall(r'\bmake ([a-z][a-z-]*)', code + (ROOT / '.ci' / 'run').read_text()))
  assert {'digits', 'test', 'lint'} <= spoken
  assert spoken <= _makefile_targets()


def _make(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(['make', *arguments], cwd=folder, capture_output=True, text=True)


def test_make_help_lists_every_target():
  listed = re.findall(r'^make ([a-z-]+) ', _make(ROOT, 'help').stdout, re.MULTILINE)
  assert set(listed) == _makefile_targets()


@pytest.mark.parametrize('python, says', [('', 'No Python 3.11 or newer'), ('false', 'false is not Python 3.11')])
def test_make_without_a_fit_python_says_what_to_do(tmp_path, python, says):
  for name in ('Makefile', 'requirements.txt'):
    shutil.copy(ROOT / name, tmp_path)
  done = _make(tmp_path, f'PYTHON={python}', 'digits')
  assert done.returncode != 0
  said = done.stderr.splitlines()
  assert len(said) == 2 and said[0].startswith(says) and 'make PYTHON=' in said[0]  # the second line is make's own
  assert not (tmp_path / '.venv').exists()


@pytest.mark.slow
def test_make_installs_once_and_starts_an_interrupted_install_again(tmp_path):
  shutil.copy(ROOT / 'Makefile', tmp_path)
  (tmp_path / '.venv').mkdir()
  base, test, unfinished, left_over = (
    tmp_path / '.venv' / name for name in ('.requirements', '.requirements-test', '.unfinished', 'left_over'))
  install = lambda: _make(tmp_path, f'PYTHON={sys.executable}', '.venv/.requirements-test')
  unfinished.touch()
  left_over.write_text('half a wheel')
  (tmp_path / 'requirements.txt').write_text('')
  (tmp_path / 'requirements-test.txt').write_text('')
  assert install().returncode == 0
  assert base.exists() and test.exists() and not unfinished.exists() and not left_over.exists()
  assert 'up to date' in install().stdout

  (tmp_path / 'requirements-test.txt').write_text('./there_is_no_such_package')
  assert install().returncode != 0
  assert unfinished.exists() and not base.exists()


def test_a_test_cannot_reach_another_machine():
  for attempt in (socket.socket().connect, socket.socket().connect_ex):
    with pytest.raises(OSError, match='tests have no network'):
      attempt(('192.0.2.1', 80))  # reserved for documentation (RFC 5737): nobody's address


def test_a_test_can_reach_its_own_machine():
  with socket.create_server(('127.0.0.1', 0)) as server, socket.create_connection(server.getsockname()) as client:
    client.sendall(b'x')
    assert server.accept()[0].recv(1) == b'x'


def test_the_tests_see_eight_devices():
  import jax
  assert jax.local_device_count('cpu') == 8
