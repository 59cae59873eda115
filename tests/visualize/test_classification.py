"""Pictures are looked at by people; what a machine can check is that they are whole, honest, and leave no trace."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from perceiver_jax import visualize
from perceiver_jax.visualize.canvas import RED
from perceiver_jax.visualize.classification import (
  attention_maps,
  cells_of,
  different_examples,
  mistakes_first,
  prediction_grid,
  training_curves,
)
from tests.visualize.tidy import assert_tidy

HISTORY = [
  {'step': 1, 'train/loss': 2.3, 'train/accuracy': 0.1},
  {'step': 10, 'train/loss': 0.5, 'train/accuracy': 0.8, 'speed/examples_per_s': 900.0},
  {'step': 10, 'validation/loss': 0.6, 'validation/accuracy': 0.75},
  {'step': 20, 'train/loss': 0.1, 'train/accuracy': 0.97},
  {'step': 20, 'test/loss': 0.2, 'test/accuracy': 0.95},
]
LONG_NAMES = [f'{"W" * (i % 40)} German short-haired pointer {i}, a gun dog' for i in range(1000)]


def run(num_images, shape=(8, 8, 1), class_names=('no', 'yes', 'maybe'), num_cross_attends=1, num_latents=6, **changes):
  """Arguments of a picture of made-up results, in which one image in four is classified wrongly."""
  generator = np.random.default_rng(0)
  labels = generator.integers(len(class_names), size=num_images)
  predictions = (labels + (np.arange(num_images) % 4 == 1)) % len(class_names)
  logits = generator.normal(size=(num_images, len(class_names))) + 12 * np.eye(len(class_names))[predictions]
  scores = 3 * generator.normal(size=(num_cross_attends, num_images, num_latents, shape[0] * shape[1]))
  return dict(
    history=HISTORY,
    images=generator.integers(256, size=(num_images, *shape), dtype=np.uint8),
    labels=labels,
    probabilities=np.exp(logits) / np.exp(logits).sum(-1, keepdims=True),
    attention=np.exp(scores) / np.exp(scores).sum(-1, keepdims=True),
    class_names=class_names,
    title='A Perceiver',
  ) | changes


CASES = {
  'plain': run(8),
  'one image, nothing measured': run(1, history=[]),
  'two classes, eight cross-attends': run(2, class_names=('no', 'yes'), num_cross_attends=8),
  'a thousand long names': run(9, shape=(32, 32, 3), class_names=LONG_NAMES, title='long ' * 99, num_cross_attends=2),
  'flat images': run(9, shape=(2, 40, 3), num_cross_attends=2),
  'tall images, one latent, NaN': run(9, (40, 8, 1), num_latents=1, history=[{'step': 1, 'train/loss': np.nan}]),
  'no attention': run(12, attention=None),
  'attention over patches': run(4, shape=(32, 32, 3), attention=np.eye(16)[None, None].repeat(4, axis=1)),
  'even attention': run(3, attention=np.full((1, 3, 4, 64), 1 / 64)),
}


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """The plain case, drawn once."""
  path = tmp_path_factory.mktemp('plain') / 'summary.png'
  visualize.classification_summary(path, **CASES['plain'])
  return path


def draw(path, **arguments):
  visualize.classification_summary(path, **arguments)
  return imread(path)[..., :3]


def num_red(picture):
  return int((np.abs(picture - to_rgb(RED)).max(-1) < 0.01).sum())


@pytest.mark.parametrize('case', CASES)
def test_a_picture_is_whole_and_nothing_runs_over_its_edges(case, tmp_path):
  picture = draw(tmp_path / 'summary.png', **CASES[case])
  assert picture.shape == (700, 1400, 3)
  assert picture.min() < 0.2
  edge = np.concatenate([picture[:3].ravel(), picture[-3:].ravel(), picture[:, :3].ravel(), picture[:, -3:].ravel()])
  assert (edge == 1).all()
  assert [file.name for file in tmp_path.iterdir()] == ['summary.png']


def panels(arguments):
  """Each panel of a picture on a figure of its own, drawn."""
  images, labels = arguments['images'], arguments['labels']
  parts = [(400, training_curves, (arguments['history'],)),
           (480, prediction_grid, (images, labels, arguments['probabilities'], arguments['class_names']))]
  if arguments['attention'] is not None:
    parts.append((520, attention_maps, (images, labels, arguments['attention'])))
  for width, function, details in parts:
    figure = Figure(figsize=(width / 100, 7), dpi=100)
    function(figure.subfigures(), *details)
    FigureCanvasAgg(figure).draw()
    yield figure


@pytest.mark.parametrize('case', sorted(CASES.keys() - {'plain', 'no attention'}))
def test_no_text_runs_into_another_or_out_of_its_panel(case):
  for figure in panels(CASES[case]):
    assert_tidy(figure)


def test_class_names_in_any_script_are_drawn(drawn):
  drawn(visualize.classification_summary, **run(8, class_names=('犬', 'chien\n🐕', '$dog_1$')))


def test_the_same_results_give_the_same_file(plain, tmp_path):
  visualize.classification_summary(tmp_path / 'again.png', **CASES['plain'])
  assert (tmp_path / 'again.png').read_bytes() == plain.read_bytes()


def test_other_predictions_change_the_middle_of_the_picture_only(plain, tmp_path):
  before = imread(plain)[..., :3]
  after = draw(tmp_path / 'other.png', **CASES['plain'] | {'probabilities': CASES['plain']['probabilities'][:, ::-1]})
  changed = np.flatnonzero((before != after).any((0, 2)))
  assert changed.min() >= 400 and changed.max() < 880


def test_red_means_wrong(tmp_path):
  arguments = CASES['plain']
  right = np.eye(3)[arguments['labels']]
  assert num_red(draw(tmp_path / 'right.png', **arguments | {'probabilities': right})) == 0
  one_wrong = right.copy()
  one_wrong[-1] = np.roll(right[-1], 1)
  assert num_red(draw(tmp_path / 'wrong.png', **arguments | {'probabilities': one_wrong})) > 500


def test_pictures_stand_upright(tmp_path):
  sky_over_ground = np.array([[[[255]], [[0]]]], np.uint8)
  picture = draw(tmp_path / 'summary.png', **run(1, attention=None, images=sky_over_ground))
  assert picture[200, 900].min() > 0.9 and picture[600, 900].max() < 0.1


def test_a_dark_style_of_the_reader_changes_nothing(plain, tmp_path):
  with matplotlib.rc_context({'savefig.dpi': 50, 'savefig.bbox': 'tight', 'image.cmap': 'jet', 'lines.linestyle': ':',
                              'text.color': 'white', 'axes.facecolor': 'black', 'axes.edgecolor': 'white',
                              'axes.labelcolor': 'white', 'axes.titlecolor': 'white', 'figure.facecolor': 'black',
                              'grid.color': 'white', 'savefig.facecolor': 'black', 'xtick.color': 'white',
                              'ytick.color': 'white', 'axes.grid': False, 'image.origin': 'lower'}):
    visualize.classification_summary(tmp_path / 'dark.png', **CASES['plain'])
  assert (tmp_path / 'dark.png').read_bytes() == plain.read_bytes()


def test_drawing_leaves_matplotlib_as_it_was_and_never_meets_pyplot_or_jax(tmp_path):
  program = f"""
import sys
import matplotlib
import numpy as np
def settings():  # reading 'backend' would choose one
  return {{name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != 'backend'}}
before = settings(), matplotlib.get_backend(auto_select=False)
from perceiver_jax import visualize
visualize.classification_summary(
  {str(tmp_path / 'summary.png')!r}, history=[], images=np.zeros((1, 2, 2, 1), np.uint8), labels=np.array([0]),
  probabilities=np.array([[0.6, 0.4]]), attention=np.full((1, 1, 1, 4), 0.25), class_names=['no', 'yes'], title='')
assert (settings(), matplotlib.get_backend(auto_select=False)) == before, 'settings changed'
print([name for name in ('matplotlib.pyplot', 'jax', 'haiku') if name in sys.modules])
"""
  answer = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False)
  assert answer.stdout == '[]\n', answer.stderr
  assert (tmp_path / 'summary.png').exists()


def test_a_new_picture_replaces_the_old_one_whole(plain, tmp_path):
  path = tmp_path / 'summary.png'
  path.write_bytes(b'the old picture')
  with path.open('rb') as reader:
    visualize.classification_summary(path, **CASES['plain'])
    assert reader.read() == b'the old picture', 'who was reading it still has it'
  assert path.read_bytes() == plain.read_bytes()


def test_attention_over_other_pixels_than_the_pictures_is_refused(tmp_path):
  for num_cells in (10, 100):
    with pytest.raises(ValueError, match=f'attention over {num_cells} cells does not fit images of 8 x 8'):
      draw(tmp_path / 'summary.png', **run(2, attention=np.full((1, 2, 4, num_cells), 1 / num_cells)))


@pytest.mark.parametrize(('shape', 'num_cells', 'grid'), [
  ((224, 224), 50_176, (224, 224)), ((224, 224), 3_136, (56, 56)), ((224, 224), 55 * 55, (55, 55)),
  ((2, 40), 80, (2, 40)), ((4, 40), 10, (1, 10)), ((8, 12), 24, (4, 6)), ((8, 8), 1, (1, 1))])
def test_cells_have_the_proportions_of_their_image(shape, num_cells, grid):
  assert cells_of(shape, num_cells) == grid


def test_attention_over_patches_is_shown_as_that_over_their_pixels(tmp_path):
  generator = np.random.default_rng(0)
  coarse = generator.dirichlet(np.ones(16), size=(1, 8, 6))
  fine = coarse.reshape(1, 8, 6, 4, 4).repeat(2, axis=3).repeat(2, axis=4).reshape(1, 8, 6, 64) / 4
  one = draw(tmp_path / 'coarse.png', **CASES['plain'] | {'attention': coarse})
  other = draw(tmp_path / 'fine.png', **CASES['plain'] | {'attention': fine})
  assert (one[110:] == other[110:]).all()
  assert (one[:110] != other[:110]).any()  # which says 4 x 4 cells


def test_attention_may_cover_only_the_first_images():
  arguments = run(9)
  covered = arguments | {'attention': arguments['attention'][:, :2]}
  *_, figure = panels(covered)
  (page,) = figure.findobj(Axes)
  assert len(page.images) == 2 * (1 + 3) + 1, 'two pictures, each with three latents, and the key'


def test_mistakes_come_first_but_only_a_few_of_them():
  is_wrong = np.array([0, 1, 0, 1, 1, 0, 0], bool)
  labels = np.array([0, 0, 0, 0, 0, 0, 1])
  assert mistakes_first(is_wrong, labels, 5, at_most=2).tolist() == [1, 3, 0, 6, 2]
  assert mistakes_first(is_wrong, labels, 9, at_most=2).tolist() == [1, 3, 0, 6, 2, 5, 4]


def test_examples_of_different_classes_come_first():
  assert different_examples(np.array([7, 7, 2, 7, 5]), 4) == [0, 2, 4, 1]
