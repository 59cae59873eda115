"""A person's own files: what is read, and what is said of one that cannot be."""

from __future__ import annotations

import io
import os
import resource
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from perceiver_jax.data.files import read_image, read_sound, read_video
from perceiver_jax.types import UserError

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def _smooth(height=48, width=64):
  """Redder to the right and greener downwards, which JPEG changes little."""
  red, green = np.meshgrid(np.linspace(20, 220, width), np.linspace(20, 220, height))
  return np.stack([red, green, np.full_like(red, 90)], -1).astype(np.uint8)


# Pictures.


@pytest.mark.parametrize('extension', ['png', 'bmp', 'webp', 'tiff'])
def test_a_lossless_picture_is_read_pixel_by_pixel(tmp_path, extension):
  path = tmp_path / f'picture.{extension}'
  Image.fromarray(PICTURE).save(path, **({'lossless': True} if extension == 'webp' else {}))
  found = read_image(path)
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, PICTURE)
  np.testing.assert_array_equal(read_image(str(path)), PICTURE)


# Of each EXIF orientation, how to turn the stored pixels upright.
TURNS = {
  1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
  8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize('orientation', TURNS)
def test_a_photograph_is_upright_however_the_camera_was_held(tmp_path, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(_smooth()).save(tmp_path / 'photo.jpg', quality=95, exif=exif)
  found, expected = read_image(tmp_path / 'photo.jpg'), TURNS[orientation](_smooth())
  assert found.shape == expected.shape
  assert np.abs(found.astype(int) - expected).max() < 16


def test_a_grey_picture_has_three_equal_colours(tmp_path):
  Image.fromarray(PICTURE[..., 0]).save(tmp_path / 'grey.png')
  np.testing.assert_array_equal(read_image(tmp_path / 'grey.png'), np.repeat(PICTURE[..., :1], 3, -1))


def test_a_palette_is_looked_up_and_transparency_is_left_out(tmp_path):
  few = (PICTURE // 128 * 255).astype(np.uint8)  # 8 colours
  Image.fromarray(few).quantize(8).save(tmp_path / 'palette.png')
  np.testing.assert_array_equal(read_image(tmp_path / 'palette.png'), few)
  Image.fromarray(np.dstack([PICTURE, PICTURE[..., 0]])).save(tmp_path / 'transparent.png')
  np.testing.assert_array_equal(read_image(tmp_path / 'transparent.png'), PICTURE)


def test_sixteen_bits_become_eight(tmp_path):
  cv2.imwrite(str(tmp_path / 'deep.png'), PICTURE.astype(np.uint16) * 257)
  np.testing.assert_array_equal(read_image(tmp_path / 'deep.png'), PICTURE[..., ::-1])  # OpenCV writes BGR
  cv2.imwrite(str(tmp_path / 'grey.png'), PICTURE[..., 0].astype(np.uint16) * 257)
  np.testing.assert_array_equal(read_image(tmp_path / 'grey.png'), np.repeat(PICTURE[..., :1], 3, -1))


def test_a_picture_of_floats_is_refused(tmp_path):
  Image.fromarray(PICTURE[..., 0].astype(np.float32)).save(tmp_path / 'float.tiff')
  with pytest.raises(UserError, match="mode 'F' has no range"):
    read_image(tmp_path / 'float.tiff')


def test_a_broken_note_of_the_camera_turns_nothing(tmp_path):
  Image.fromarray(_smooth()).save(tmp_path / 'photo.jpg', exif=b'Exif\0\0MM\0*\xff\xff\xff\xff')
  assert read_image(tmp_path / 'photo.jpg').shape == (48, 64, 3)


def test_a_photograph_that_was_cut_short_is_refused(tmp_path):
  Image.fromarray(_smooth()).save(tmp_path / 'photo.jpg')
  content = (tmp_path / 'photo.jpg').read_bytes()
  (tmp_path / 'photo.jpg').write_bytes(content[:len(content) * 2 // 3])
  with pytest.raises(UserError, match=r'photo\.jpg: it is broken'):
    read_image(tmp_path / 'photo.jpg')


def _huge(path):
  """The first bytes of a PNG that claims 60,000 x 60,000 pixels."""
  Image.fromarray(PICTURE).save(path)
  data = bytearray(path.read_bytes())
  data[16:24] = struct.pack('>II', 60_000, 60_000)
  path.write_bytes(data)


@pytest.mark.parametrize('write', [
  lambda path: path.write_bytes(b''),
  lambda path: path.write_text('not a picture'),
  lambda path: path.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(50)),
  _huge,
], ids=['empty', 'text', 'broken', 'huge'])
def test_what_is_no_picture_is_named(tmp_path, write):
  write(tmp_path / 'x.png')
  with pytest.raises(UserError, match=r'cannot read .*x\.png: it is broken, or (no picture|made to harm)'):
    read_image(tmp_path / 'x.png')


def _claiming(form, width, height, **options):
  """A few hundred bytes, whole but for the size that their header gives."""
  file = io.BytesIO()
  Image.fromarray(_smooth()).save(file, form, **options)
  content = bytearray(file.getvalue())
  match form:
    case 'PNG':
      content[16:24] = struct.pack('>II', width, height)
      content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    case 'JPEG':
      place = content.index(b'\xff\xc2' if 'progressive' in options else b'\xff\xc0')
      content[place + 5:place + 9] = struct.pack('>HH', height, width)
    case 'GIF':
      content[6:10] = struct.pack('<HH', width, height)
    case 'WEBP' if 'exif' in options:
      content[24:30] = (width - 1).to_bytes(3, 'little') + (height - 1).to_bytes(3, 'little')
    case 'WEBP' if 'lossless' in options:
      content[21:25] = (width - 1 | (height - 1) << 14).to_bytes(4, 'little')
    case 'WEBP':
      content[26:30] = struct.pack('<HH', width, height)
  return bytes(content)


BOMBS = {
  'png': ('PNG', {}), 'jpeg': ('JPEG', {}), 'progressive jpeg': ('JPEG', {'progressive': True}), 'gif': ('GIF', {}),
  'webp': ('WEBP', {}), 'lossless webp': ('WEBP', {'lossless': True}), 'webp with exif': ('WEBP', {'exif': b'Exif'})}


@pytest.mark.parametrize('form, options', BOMBS.values(), ids=BOMBS)
def test_a_few_bytes_that_claim_many_pixels_are_refused_before_they_are_unfolded(tmp_path, form, options):
  path = tmp_path / 'bomb'
  path.write_bytes(_claiming(form, 64, 48, **options))
  assert read_image(path).shape == (48, 64, 3)
  path.write_bytes(_claiming(form, 11_000, 12_000, **options))
  with pytest.raises(UserError, match=r'bomb: it is broken, or (made to harm: it claims 11000 x 12000|no picture)'):
    read_image(path)


def test_a_png_of_60_000_x_60_000_pixels_and_a_jpeg_of_65_535_x_65_535_take_no_memory(tmp_path):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for form, side in (('PNG', 60_000), ('JPEG', 65_535)):
    (tmp_path / 'bomb').write_bytes(_claiming(form, side, side))
    with pytest.raises(UserError):
      read_image(tmp_path / 'bomb')
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15  # of 1,024 bytes


@pytest.mark.parametrize('name', [b'tEXt', b'XXXX'])
def test_a_chunk_of_a_png_that_claims_two_gigabytes_takes_no_memory(tmp_path, name):
  content = _claiming('PNG', 64, 48)
  (tmp_path / 'bomb.png').write_bytes(content[:33] + struct.pack('>I', 2**31 - 1) + name + content[41:])
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(UserError, match=r'bomb\.png: it is broken'):
    read_image(tmp_path / 'bomb.png')
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15  # of 1,024 bytes


def test_a_large_picture_of_one_colour_is_no_bomb(tmp_path):
  Image.new('RGB', (6_000, 3_000), 'white').save(tmp_path / 'white.png')
  assert (tmp_path / 'white.png').stat().st_size < 100_000
  assert read_image(tmp_path / 'white.png').shape == (3_000, 6_000, 3)


# What all have in common.

READERS = {
  'image': read_image, 'video': lambda path: read_video(path, 2, 25), 'sound': lambda path: read_sound(path, 2)}


@pytest.mark.parametrize('kind', READERS)
@pytest.mark.parametrize('name', ['missing', 'folder'])
def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path, kind, name):
  (tmp_path / 'folder').mkdir()
  with pytest.raises(UserError, match=f'{tmp_path / name}.*(directory|no clip)|no clip.*{tmp_path / name}'):
    READERS[kind](tmp_path / name)


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='root reads every file')
def test_a_file_that_may_not_be_read_is_named(tmp_path):
  path = tmp_path / 'secret.png'
  path.touch(mode=0)
  with pytest.raises(UserError, match=r'secret\.png: Permission denied'):
    read_image(path)


# Clips.


def _clip(path, num_frames, rate):
  """Frame number i is grey, of brightness 4 i, so that MJPG changes it by little."""
  writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), rate, (32, 24))
  assert writer.isOpened()
  for i in range(num_frames):
    writer.write(np.full((24, 32, 3), 4 * i, np.uint8))
  writer.release()
  return path


@pytest.mark.parametrize('rate, expected', [
  (25, [0, 1, 2, 3, 4, 5]), (50, [0, 2, 4, 6, 8, 10]), (30, [0, 1, 2, 3, 4, 6]), (12.5, [0, 0, 1, 1, 2, 2]),
  (24, [0, 0, 1, 2, 3, 4]),
])
def test_a_clip_of_any_rate_shows_what_was_on_the_screen_25_times_a_second(tmp_path, rate, expected):
  clip = read_video(_clip(tmp_path / 'clip.avi', 12, rate), 6, 25)
  assert (clip.shape, clip.dtype) == ((6, 24, 32, 3), np.uint8)
  np.testing.assert_array_equal(np.rint(clip.mean((1, 2, 3)) / 4), expected)


def test_colours_of_a_clip_are_red_green_and_blue(tmp_path):
  writer = cv2.VideoWriter(str(tmp_path / 'red.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 25, (32, 24))
  writer.write(np.full((24, 32, 3), (20, 60, 200), np.uint8))  # blue, green, red
  writer.release()
  found = read_video(tmp_path / 'red.avi', 1, 25).mean((0, 1, 2))
  np.testing.assert_allclose(found, (200, 60, 20), atol=4)


def test_a_clip_that_is_too_short_is_told_with_both_lengths(tmp_path):
  with pytest.raises(UserError, match=r'clip\.avi ends after 5 frames, 0\.10 s; 0\.64 s are needed'):
    read_video(_clip(tmp_path / 'clip.avi', 5, 50), 16, 25)
  assert len(read_video(tmp_path / 'clip.avi', 3, 25)) == 3  # frames 0, 2 and 4


@pytest.mark.parametrize('content', [b'', b'not a clip', b'RIFF\x10\x00\x00\x00AVI LIST'])
def test_what_is_no_clip_is_named(tmp_path, content):
  (tmp_path / 'x.avi').write_bytes(content)
  with pytest.raises(UserError, match=r'cannot read .*x\.avi: it is broken, or no clip'):
    read_video(tmp_path / 'x.avi', 2, 25)


def test_a_broken_clip_is_named(tmp_path):
  path = _clip(tmp_path / 'clip.avi', 12, 25)
  path.write_bytes(path.read_bytes()[:1500])
  with pytest.raises(UserError, match=r'clip\.avi'):
    read_video(path, 12, 25)


# Sound.


def _wav(path, bits, channels, data, tag=1, claimed=None):
  block = bits // 8 * channels
  header = struct.pack('<4sIHHIIHH', b'fmt ', 16, tag, channels, 48_000, 48_000 * block, block, bits)
  size = len(data) if claimed is None else claimed
  chunks = b'WAVE' + header + struct.pack('<4sI', b'data', size) + data
  path.write_bytes(struct.pack('<4sI', b'RIFF', min(36 + size, 2**32 - 1)) + chunks)
  return path


LEVELS = np.array([0, 0.5, -0.5, 0.25, -1])  # which every depth holds exactly


def _pcm(bits):
  whole = LEVELS * 2 ** (bits - 1)
  if bits == 8:
    return (whole + 128).astype(np.uint8).tobytes()
  return b''.join(int(value).to_bytes(bits // 8, 'little', signed=True) for value in whole)


@pytest.mark.parametrize('bits', [8, 16, 24, 32])
def test_whole_numbers_of_every_depth_become_the_same_levels(tmp_path, bits):
  samples, rate = read_sound(_wav(tmp_path / 'x.wav', bits, 1, _pcm(bits)), 5)
  assert (samples.dtype, rate) == (np.float32, 48_000)
  np.testing.assert_array_equal(samples, LEVELS)


@pytest.mark.parametrize('dtype', ['<f4', '<f8'])
def test_floats_stay_as_they_are(tmp_path, dtype):
  data = LEVELS.astype(dtype).tobytes()
  samples, _ = read_sound(_wav(tmp_path / 'x.wav', 8 * np.dtype(dtype).itemsize, 1, data, tag=3), 5)
  assert samples.dtype == np.float32
  np.testing.assert_array_equal(samples, LEVELS)


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'int32', 'float32'])
def test_channels_are_averaged(tmp_path, dtype):
  levels = np.stack([LEVELS, np.full(5, 0.5)], -1)
  whole = levels if dtype == 'float32' else levels * 2.0 ** (np.iinfo(dtype).bits - 1) + 128 * (dtype == 'uint8')
  wavfile.write(tmp_path / 'x.wav', 44_100, whole.astype(dtype))
  samples, rate = read_sound(tmp_path / 'x.wav', 4)
  assert rate == 44_100
  np.testing.assert_array_equal(samples, (LEVELS[:4] + 0.5) / 2)


def test_only_the_start_of_a_longer_file_is_taken(tmp_path):
  wavfile.write(tmp_path / 'x.wav', 48_000, np.arange(100, dtype=np.int16))
  np.testing.assert_array_equal(read_sound(tmp_path / 'x.wav', 7)[0] * 2**15, np.arange(7))


def test_a_file_that_is_too_short_is_told_with_both_lengths(tmp_path):
  wavfile.write(tmp_path / 'x.wav', 48_000, np.zeros((9, 2), np.int16))
  with pytest.raises(UserError, match=r'x\.wav has 9 samples; 10 are needed'):
    read_sound(tmp_path / 'x.wav', 10)


@pytest.mark.parametrize('bits', [8, 16, 24, 32])
def test_a_file_that_claims_gigabytes_is_as_long_as_it_is(tmp_path, bits):
  path = _wav(tmp_path / 'x.wav', bits, 1, _pcm(bits), claimed=2**32 - 256)
  np.testing.assert_array_equal(read_sound(path, 5)[0], LEVELS)
  with pytest.raises(UserError, match='has 5 samples; 6 are needed'):
    read_sound(path, 6)


def _rf64(path):
  """Claims 32 TiB."""
  sizes = struct.pack('<4sIQQQI', b'ds64', 28, 2**50, 2**45, 2**44, 0)
  header = struct.pack('<4sIHHIIHH', b'fmt ', 16, 1, 1, 48_000, 96_000, 2, 16)
  path.write_bytes(b'RF64' + b'\xff' * 4 + b'WAVE' + sizes + header + b'data' + b'\xff' * 4 + bytes(100))


@pytest.mark.parametrize('write', [
  lambda path: path.write_bytes(b''),
  lambda path: path.write_bytes(b'not a sound'),
  lambda path: path.write_bytes(b'RIFF\x24\x00\x00\x00WAVE'),
  lambda path: path.write_bytes(b'RIFF\x24\x00\x00\x00WAVEfmt \x10\x00'),
  lambda path: _wav(path, 16, 2, bytes(18)),            # half a sample of stereo
  lambda path: _wav(path, 24, 1, bytes(16)),            # a third of one
  lambda path: _wav(path, 16, 0, bytes(16)),            # no channels
  lambda path: _wav(path, 16, 1, bytes(16), tag=0x55),  # MP3 in a WAV file
  _rf64,
], ids=['empty', 'text', 'no chunk', 'cut header', 'cut stereo', 'cut sample', 'no channel', 'mp3', '32 TiB'])
def test_what_is_no_wav_file_or_a_broken_one_is_named(tmp_path, write):
  write(tmp_path / 'x.wav')
  with pytest.raises(UserError, match=r'cannot read .*x\.wav: it is broken, or no WAV file'):
    read_sound(tmp_path / 'x.wav', 2)
