"""Frames stand above their reconstructions, sound against seconds, labels beside their probabilities."""

import numpy as np
import pytest
from matplotlib.image import AxesImage

from perceiver_jax import visualize
from perceiver_jax.types import UserError
from perceiver_jax.visualize.reconstruction import outline
from tests.visualize.tidy import assert_tidy, boxes_of_texts

LABELS = [('playing ' * 20, 0.5), ('犬\n', 0.25), ('c', 0.125), ('d', 0.0), ('e', 0.0), ('sixth', 0.0)]


def video_of(*shape):
  return np.random.default_rng(0).integers(256, size=(*shape, 3), dtype=np.uint8)


def sound_of(num_samples):
  return np.random.default_rng(1).uniform(-1, 1, size=num_samples).astype(np.float32)


CASES = {
  'a clip': (video_of(16, 56, 56), sound_of(30720), 48000, LABELS),
  'one tiny frame, one sample': (video_of(1, 8, 8), sound_of(1), 48000, None),
  'wide frames': (video_of(3, 64, 256), sound_of(300), 16, LABELS),
  'tall frames': (video_of(9, 256, 64), sound_of(5000), 25.5, LABELS[:1]),
  'silence': (video_of(2, 8, 8), np.zeros(50), 48000, []),
}


@pytest.mark.parametrize('case', CASES)
def test_a_picture_is_tidy(case, drawn):
  video, audio, sample_rate, labels = CASES[case]
  figure, picture = drawn(visualize.reconstruction, video, video, audio, audio, sample_rate, labels)
  assert picture.shape[1] == 1400
  assert_tidy(figure)


def test_each_frame_stands_above_its_reconstruction(drawn):
  video = np.stack([np.full((4, 4, 3), 10 * step, np.uint8) for step in range(16)])
  figure, picture = drawn(visualize.reconstruction, video, 255 - video, *[sound_of(9)] * 2, 48000)
  shown = figure.findobj(AxesImage)
  assert [image.get_array().max() for image in shown[::2]] == [0, 20, 40, 60, 90, 110, 130, 150]
  for original, again in zip(shown[::2], shown[1::2], strict=True):
    above, below = original.get_window_extent(), again.get_window_extent()
    assert above.x0 == below.x0 and above.y0 > below.y1
    pixels = [255 * picture[int(len(picture) - box.y0 - box.height / 2), int(box.x0 + box.width / 2)].mean()
              for box in (above, below)]
    np.testing.assert_allclose(sum(pixels), 255, atol=1)
  texts = {text for text, _ in boxes_of_texts(figure)}
  assert texts >= {'frame 1', 'frame 5', 'frame 16', 'original', 'reconstruction'}


def test_floats_are_the_same_picture_as_bytes_and_are_clipped(drawn):
  video, sound = video_of(2, 4, 4), [sound_of(9)] * 2
  video[0, 0, 0], video[0, 0, 1] = 0, 255
  floats = video / 255.0
  floats[0, 0, 0], floats[0, 0, 1] = -0.3, 1.3
  _, expected = drawn(visualize.reconstruction, video, video, *sound, 48000)
  _, picture = drawn(visualize.reconstruction, video, floats.astype(np.float32), *sound, 48000)
  np.testing.assert_array_equal(picture, expected)


def test_sound_is_drawn_to_one_scale_against_seconds(drawn):
  wave = np.sin(np.arange(480) / 9)
  figure, _ = drawn(visualize.reconstruction, *[video_of(1, 4, 4)] * 2, wave, wave / 4, 240)
  original, again = figure.axes[1:]
  assert original.get_ylim() == again.get_ylim() and original.get_ylim()[1] > 1
  assert original.get_xlim() == again.get_xlim() == (0, 2) and again.get_xlabel() == 'seconds'
  assert original.get_position().y0 > again.get_position().y1
  np.testing.assert_allclose(original.lines[0].get_ydata(), wave)
  np.testing.assert_allclose(again.lines[0].get_ydata(), wave / 4)


def test_the_outline_of_a_long_wave_keeps_its_extremes():
  wave = sound_of(100_000)
  wave[54_321], wave[77_777] = 3, -3
  times, values = outline(wave, 48000, 100)
  assert len(times) == len(values) == 200
  low, high = values.reshape(100, 2).T
  np.testing.assert_array_equal(low, wave.reshape(100, 1000).min(1))
  np.testing.assert_array_equal(high, wave.reshape(100, 1000).max(1))
  assert times[2 * 54] == 54_000 / 48000


def test_the_best_five_labels_are_drawn_with_their_probabilities(drawn):
  figure, _ = drawn(visualize.reconstruction, *CASES['a clip'][:1] * 2, *[sound_of(9)] * 2, 48000, LABELS)
  texts = [text for text, _ in boxes_of_texts(figure)]
  first = texts.index('Labels') + 1
  assert texts[first].endswith('…') and texts[first + 1:first + 10] == [
    '50.0%', '�↵', '25.0%', 'c', '12.5%', 'd', '0.0%', 'e', '0.0%']
  assert 'sixth' not in texts


@pytest.mark.parametrize(('changes', 'says'), [
  (dict(video=video_of(2, 4, 5)), r'video of shape \(2, 4, 5, 3\) .* of shape \(2, 4, 4, 3\)'),
  (dict(video=video_of(4, 4), video_again=video_of(4, 4)), r'\(4, 4, 3\).*\[T, H, W, 3\]'),
  (dict(video=video_of(2, 4, 4)[..., :1], video_again=video_of(2, 4, 4)[..., :1]), r'\(2, 4, 4, 1\)'),
  (dict(video=video_of(0, 4, 4), video_again=video_of(0, 4, 4)), r'\(0, 4, 4, 3\)'),
  (dict(video_again=np.full((2, 4, 4, 3), np.nan)), 'video or its reconstruction holds values that are not finite'),
  (dict(audio=sound_of(10)), r'audio of shape \(10,\) .* of shape \(9,\)'),
  (dict(audio=sound_of((9, 1)), audio_again=sound_of((9, 1))), r'\(9, 1\).*\[S\]'),
  (dict(audio_again=np.full(9, np.inf)), 'audio or its reconstruction'),
  (dict(sample_rate=0), 'sample_rate'),
  (dict(labels=[('a', 1.5)]), '0..1'),
])
def test_what_does_not_fit_is_refused(changes, says, tmp_path):
  clip = dict(video=video_of(2, 4, 4), video_again=video_of(2, 4, 4), audio=sound_of(9), audio_again=sound_of(9),
              sample_rate=48000)
  with pytest.raises(UserError, match=says):
    visualize.reconstruction(tmp_path / 'picture.png', **clip | changes)
