"""The laws that can be read in the code, by `ast`; test_laws_at_work.py runs it to test the others."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib.util
import pathlib
import re
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = [
  path.relative_to(ROOT) for pattern in ('perceiver_jax/**/*.py', 'configs/**/*.py', 'train.py', 'eval.py')
  for path in sorted(ROOT.glob(pattern))
]
ARCHITECTURE = ROOT / 'docs' / 'architecture.md'
ALL_FILES = [*FILES, *(path.relative_to(ROOT) for path in sorted(ROOT.glob('benchmarks/*.py')))]

# Who may import whom. A room is a folder or a file of perceiver_jax, or a name at the top of the repository; a dotted
# name is one file of a room.
BASE = {'types'}
ROOMS = {
  'types': set(),
  'losses': BASE,
  'metrics': BASE,
  'visualize': {'visualize', *BASE},
  'config': {'config', 'runs.files', *BASE},
  'core': {'core', *BASE},
  'data': {'data', *BASE},
  'processes': {'processes', *BASE},
  'adapters': {'adapters', 'core', *BASE},
  'baselines': {'adapters', 'baselines', 'core', *BASE},
  'tasks': {'adapters', 'baselines', 'config', 'core', 'losses', 'metrics', 'tasks', *BASE},
  'runs': {'config', 'processes', 'runs', *BASE},
  'training': {'config', 'metrics', 'processes', 'runs', 'training', *BASE},
  'interop': {'config', 'interop', 'runs.weights', *BASE},
  'inference': {
    'config', 'data.byte_tokenizer', 'inference', 'interop', 'processes.parallel', 'runs.files', 'runs.weights',
    'tasks', *BASE},
  'planning': {'config', 'inference', 'planning', 'processes', 'tasks', 'training', *BASE},
  'configs': {'config', 'configs'},
  'perceiver_jax': {'core', 'inference'},
}
ROOMS['commands'] = {*ROOMS, 'commands'} - {'configs'}
ROOMS |= {'__main__': {'commands'}, 'train': {'commands'}, 'eval': {'commands'}}
INSIDE_FUNCTIONS = {                        # what most of its users do without
  'tasks': {'data', 'visualize'}, 'inference': {'data', 'runs', 'training', 'visualize'}, 'training': {'data.pipeline'},
}

DATA_LIBRARIES = {'array_record', 'cv2', 'datasets', 'grain', 'PIL', 'sklearn', 'tensorflow', 'tensorflow_datasets'}
NUMERICS = {'chex', 'flax', 'haiku', 'jax', 'jaxlib', 'jmp', 'optax', 'orbax'}
FOREIGN_LIBRARIES = {'torch', 'transformers'}
FOREIGN_NAMES = re.compile(
  'attention_mask|basic_decoder|classification_decoder|cross_attention|d_latents|decoder_query|hidden_states|input_mask'
  '|layernorm|num_z_channels|perceiver_encoder|pos_embs|self_attention|state_dict|trainable_position|z_index_dim')
PARALLEL = {
  'all_gather', 'all_to_all', 'axis_index', 'axis_name', 'device_count', 'local_device_count', 'local_devices', 'pmap',
  'pmax', 'pmean', 'pmin', 'ppermute', 'process_count', 'process_index', 'psum', 'psum_scatter', 'shard_map',
}


# Reading code.


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
  return ast.parse((ROOT / path).read_text())


def _nodes(path: pathlib.Path, *kinds: type) -> list[Any]:
  return [node for node in ast.walk(_tree(path)) if isinstance(node, kinds)]


def _module(path: pathlib.Path) -> str:
  """'perceiver_jax.core.attention' of its path; a package's name of its __init__.py."""
  return '.'.join(path.with_suffix('').parts).removesuffix('.__init__')


MODULES = {_module(path) for path in FILES}


def _room(module: str) -> str:
  first, _, rest = module.partition('.')
  return rest.partition('.')[0] if first == 'perceiver_jax' and rest else first


def _library(module: str) -> str:
  return module.partition('.')[0]


def _imports(path: pathlib.Path) -> list[tuple[str, bool]]:
  """Every module that a file imports, in whatever manner, and whether it does so inside a function."""
  functions = _nodes(path, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
  inside = {id(node) for function in functions for node in ast.walk(function)}
  of_types = [node for node in _nodes(path, ast.If) if ast.unparse(node.test) == 'TYPE_CHECKING']
  never_run = {id(node) for branch in of_types for node in ast.walk(branch)}
  found = []
  for node in ast.walk(_tree(path)):
    if id(node) in never_run:
      continue
    if isinstance(node, ast.Import):
      targets = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      package = importlib.util.resolve_name('.' * node.level + (node.module or ''), '.'.join(path.parts[:-1]))
      names = [f'{package}.{alias.name}' for alias in node.names]
      targets = [name if name in MODULES else package for name in names]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(('import_module', '__import__')):
      # Of f'perceiver_jax.data.{name}' the constant part tells enough.
      targets = [str(part.value).rstrip('.') for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)][:1]
    else:
      targets = []
    found += [(target, id(node) in inside) for target in targets]
  return found


def _names(path: pathlib.Path) -> set[str]:
  """Every dotted name in a file's code, in full: 'numpy.random.rand' for `np.random.rand`; '.axis' for an argument."""
  names = {f'.{node.arg}' for node in _nodes(path, ast.keyword, ast.arg)}
  origin = {}
  for node in _nodes(path, ast.Import, ast.ImportFrom):
    package = f'{node.module}.' if isinstance(node, ast.ImportFrom) else ''
    names |= {package + alias.name for alias in node.names}
    origin |= {alias.asname or alias.name: package + alias.name for alias in node.names}
  for node in _nodes(path, ast.Attribute, ast.Name):
    root, dot, rest = ast.unparse(node).partition('.')
    names.add(origin.get(root, root) + dot + rest)
  return names


def _strings(path: pathlib.Path) -> list[str]:
  """Every string that is not a docstring."""
  docstrings = {id(node.value) for node in _nodes(path, ast.Expr)}
  others = [node.value for node in _nodes(path, ast.Constant) if id(node) not in docstrings]
  return [value for value in others if isinstance(value, str)]


# Law 1: imports only go down.


def test_every_module_has_a_room():
  assert [str(path) for path in FILES if _room(_module(path)) not in ROOMS] == []  # say in ROOMS what it may import


def test_imports_only_go_down():
  wrong = []
  for path in FILES:
    room = _room(_module(path))
    for target, inside in _imports(path):
      allowed = ROOMS.get(room, set()) | (INSIDE_FUNCTIONS.get(room, set()) if inside else set())
      is_ours = _library(target) in ('perceiver_jax', 'configs', 'train', 'eval', 'tests')
      if is_ours and not allowed & {_room(target), target.removeprefix('perceiver_jax.')}:
        wrong.append(f'{path} imports {target}')
  assert wrong == []


def test_no_imports_go_in_a_circle():
  graph = {
    _module(path): {target for target, _ in _imports(path) if target in MODULES} - {_module(path)} for path in FILES}
  assert list(graphlib.TopologicalSorter(graph).static_order())  # else CycleError, which names the circle


def test_libraries_stay_in_their_rooms():
  wrong = []
  for path in FILES:
    room, libraries = _room(_module(path)), {_library(target) for target, _ in _imports(path)}
    forbidden = NUMERICS if room == 'data' else DATA_LIBRARIES
    if room == 'configs':
      forbidden = libraries - {'configs', 'ml_collections', 'perceiver_jax'} - sys.stdlib_module_names
    wrong += [f'{path} imports {library}' for library in libraries & forbidden]
  assert wrong == []


# Law 2: one file says pmap.


def test_one_file_says_pmap():
  speaking = {
    str(path) for path in FILES for name in _names(path)
    if PARALLEL & set(name.split('.')) or name.startswith('jax.distributed')
  }
  assert speaking == {'perceiver_jax/processes/parallel.py'}


# Law 5: foreign names live only in interop.


def test_no_foreign_name_outside_interop():
  wrong = []
  for path in FILES:
    names = [*_names(path), *_strings(path)] if _room(_module(path)) != 'interop' else []
    foreign = [name for name in names if FOREIGN_NAMES.search(name)]
    foreign += [target for target, _ in _imports(path) if _library(target) in FOREIGN_LIBRARIES]
    wrong += [f'{path}: {name}' for name in foreign]
  assert wrong == []


# Law 8: randomness and time are functions, not streams.


def test_randomness_and_time_come_from_where_they_may():
  wrong = []
  for path in FILES:
    room, names = _room(_module(path)), _names(path)
    forbidden = {target for target, _ in _imports(path) if target in ('random', 'secrets', 'uuid')}
    forbidden |= names & {'hash', 'os.urandom', 'haiku.PRNGSequence'}
    if path != pathlib.Path('perceiver_jax/data/order.py'):
      forbidden |= {name for name in names if name.startswith('numpy.random.')} - {'numpy.random.Generator'}
    if room != 'training':  # which makes keys
      forbidden |= names & {'jax.random.key', 'jax.random.PRNGKey'}
    if room not in ('training', 'inference'):  # which give forward its typed keys
      forbidden |= names & {'jax.random.wrap_key_data'}
    if room not in ('training', 'planning', 'processes', 'runs'):  # which tell how fast it is, and wait
      forbidden |= {name for name in names if _library(name) in ('time', 'datetime')}
    if room != 'core':  # whose dropout may depend on the device
      forbidden |= names & {'haiku.next_rng_key', 'haiku.next_rng_keys'}
    wrong += [f'{path}: {name}' for name in sorted(forbidden)]
  assert wrong == []


def test_every_key_starts_from_the_seed():
  calls = [ast.unparse(node) for path in FILES for node in _nodes(path, ast.Call)]
  made = {call for call in calls if re.match(r'(jax\.)?random\.(key|PRNGKey)\(', call)}
  assert made == {'jax.random.key(config.seed)'}


# Signs that it has gone wrong.


def test_files_and_functions_are_short():
  long = [str(path) for path in ALL_FILES if len((ROOT / path).read_text().splitlines()) > 350]
  for path in ALL_FILES:
    functions = _nodes(path, ast.FunctionDef, ast.AsyncFunctionDef)
    long += [f'{path}: {each.name}' for each in functions if each.end_lineno - each.lineno + 1 > 80]
  assert long == []


def test_there_is_no_drawer_for_everything():
  assert [str(path) for path in ALL_FILES if re.search('util|helper|misc', str(path))] == []


def test_no_code_asks_which_task_it_serves():
  questions = [
    f'{path}: {ast.unparse(node)}' for path in FILES for node in _nodes(path, ast.Compare)
    if isinstance(node.ops[0], ast.Eq | ast.NotEq) and re.search(r'\b(task|modality)$', ast.unparse(node.left))
  ]
  assert questions == []


FRAGMENT = re.compile(r'(Of|What|Those|That|Who|Whose|Where|How|Which|As|For|To)\b|[\[({"\'`]')
NOT_YET_PLAIN = {'interop'}                 # rooms whose docstrings wait for a reader


def test_docstrings_begin_with_a_sentence():
  wrong = []
  for path in FILES:
    kinds = () if _room(_module(path)) in NOT_YET_PLAIN else (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in _nodes(path, *kinds):
      docstring = ast.get_docstring(node) or ''
      if FRAGMENT.match(docstring):
        wrong.append(f'{path}:{getattr(node, "lineno", 1)}: {docstring.splitlines()[0]}')
  assert wrong == []


def tree() -> str:
  """Every file, and the first line of its docstring."""
  first = {path: (ast.get_docstring(_tree(path)) or '').partition('\n')[0] for path in ALL_FILES}
  width = 2 + max(len(str(path)) for path, line in first.items() if line)
  return ''.join(f'{path!s:{width}}{line}\n' for path, line in first.items() if line)


def test_the_tree_in_the_docs_is_the_tree_on_disk():
  """Where it is not, `python -m tests.test_laws` writes it anew."""
  assert f'```text\n{tree()}```' in ARCHITECTURE.read_text()


if __name__ == '__main__':
  ARCHITECTURE.write_text(re.sub(
    r'```text\n.*?```', lambda _: f'```text\n{tree()}```', ARCHITECTURE.read_text(), flags=re.DOTALL))
