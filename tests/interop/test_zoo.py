"""The cache of released files, against a real server on this machine; never the internet."""

from __future__ import annotations

import hashlib
import http.server
import pickle
import socket
import threading
from pathlib import Path

import pytest

from perceiver_jax.interop import zoo
from perceiver_jax.types import UserError

CONTENT = pickle.dumps({'weights': bytes(range(256)) * 10_000})
NAME = 'optical_flow'
FILE = 'optical_flow_checkpoint.pystate'


@pytest.fixture
def server(monkeypatch):
  """A server that answers /x/... as `server.answer(handler)` says, and the released model NAME placed there."""
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.server.requests.append(self.path)
      self.server.answer(self)

    def log_message(self, *arguments):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    server.requests, server.answer = [], send(CONTENT)
    monkeypatch.setenv('no_proxy', '*')
    url = f'http://127.0.0.1:{server.server_port}/perceiver_io/{FILE}'
    monkeypatch.setitem(zoo.MODELS, NAME, zoo.MODELS[NAME]._replace(url=url))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def send(content: bytes, *, claimed: int | None = None, status: int = 200):
  """Answers with `content`; says that it has `claimed` bytes, or nothing of its length where that is -1."""
  def answer(handler):
    handler.send_response(status)
    if claimed != -1:
      handler.send_header('Content-Length', str(len(content) if claimed is None else claimed))
    handler.end_headers()
    handler.wfile.write(content)
  return answer


def names(directory: Path) -> set[str]:
  return {child.name for child in directory.iterdir()}


def test_the_table_has_the_six_models_under_one_address():
  assert zoo.MODELS.keys() == {
    'imagenet_fourier', 'imagenet_learned', 'imagenet_conv', 'masked_lm', 'optical_flow', 'video_autoencoding'}
  for model in zoo.MODELS.values():
    assert model.url.startswith('https://storage.googleapis.com/perceiver_io/')
    assert model.licence == 'CC BY 4.0' and 'Perceiver IO' in model.credit and 'DeepMind' in model.credit
  assert len({model.url for model in zoo.MODELS.values()}) == 6


def test_a_file_is_fetched_once_and_its_digest_recorded(server, tmp_path):
  for _ in range(2):
    path = zoo.fetch(NAME, tmp_path / 'cache')
    assert path == tmp_path / 'cache' / FILE and path.read_bytes() == CONTENT
  assert server.requests == [f'/perceiver_io/{FILE}']
  assert (path.parent / f'{FILE}.sha256').read_text() == f'{hashlib.sha256(CONTENT).hexdigest()}  {FILE}\n'
  assert names(path.parent) == {FILE, f'{FILE}.sha256'}


def test_the_bar_shows_how_much_of_how_much(server, tmp_path, capfd):
  zoo.fetch(NAME, tmp_path)
  said = capfd.readouterr().err
  assert FILE in said and '100%' in said and '2.44M/2.44M' in said


def test_a_server_that_does_not_tell_the_length_will_do(server, tmp_path):
  server.answer = send(CONTENT, claimed=-1)
  assert zoo.fetch(NAME, tmp_path).read_bytes() == CONTENT


def test_the_cache_is_the_users(server, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  assert zoo.fetch(NAME) == tmp_path / 'xdg' / 'perceiver_jax' / FILE
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  assert zoo.fetch(NAME) == tmp_path / 'home' / '.cache' / 'perceiver_jax' / FILE


def test_a_cut_connection_leaves_nothing_and_says_so(server, tmp_path):
  server.answer = send(CONTENT[:1_500_000], claimed=len(CONTENT))
  with pytest.raises(UserError, match=f'cut after 1500000 of {len(CONTENT)} bytes'):
    zoo.fetch(NAME, tmp_path)
  assert names(tmp_path) == set()
  server.answer = send(CONTENT)
  assert zoo.fetch(NAME, tmp_path).read_bytes() == CONTENT


def test_a_connection_reset_in_the_middle_leaves_nothing(server, tmp_path):
  def answer(handler):
    send(CONTENT[:1000], claimed=len(CONTENT))(handler)
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')  # reset, not closed
    handler.connection.close()
  server.answer = answer
  with pytest.raises(UserError, match='cannot fetch http'):
    zoo.fetch(NAME, tmp_path)
  assert names(tmp_path) == set()


def test_chunks_that_end_early_leave_nothing(server, tmp_path):
  def answer(handler):
    handler.send_response(200)
    handler.send_header('Transfer-Encoding', 'chunked')
    handler.end_headers()
    handler.wfile.write(b'ffff\r\n' + CONTENT[:100])
  server.answer = answer
  with pytest.raises(UserError, match='cannot fetch http'):
    zoo.fetch(NAME, tmp_path)
  assert names(tmp_path) == set()


@pytest.mark.parametrize('status', [403, 404, 500])
def test_an_error_of_the_server_says_what_to_fetch_by_hand_and_where_to_put_it(server, tmp_path, status):
  server.answer = send(b'no', status=status)
  with pytest.raises(UserError) as error:
    zoo.fetch(NAME, tmp_path)
  for part in (
      zoo.MODELS[NAME].url, str(status), 'by hand', str(tmp_path / FILE), 'load(..., path=FILE)', '--path=FILE'):
    assert part in str(error.value)
  assert names(tmp_path) == set()


def test_without_a_server_it_says_what_to_fetch_by_hand(tmp_path, monkeypatch):
  monkeypatch.setenv('no_proxy', '*')
  with socket.create_server(('127.0.0.1', 0)) as closed:
    port = closed.getsockname()[1]
  url = f'http://127.0.0.1:{port}/{FILE}'
  monkeypatch.setitem(zoo.MODELS, NAME, zoo.MODELS[NAME]._replace(url=url))
  with pytest.raises(UserError, match=f'cannot fetch {url}.*by hand.*{tmp_path / FILE}'):
    zoo.fetch(NAME, tmp_path)


def test_a_page_instead_of_the_file_is_not_trusted(server, tmp_path):
  server.answer = send(b'<html>Please log in</html>')
  with pytest.raises(UserError, match='is no pickle'):
    zoo.fetch(NAME, tmp_path)
  assert names(tmp_path) == set()


def test_a_file_placed_by_hand_is_taken_and_recorded(server, tmp_path):
  (tmp_path / FILE).write_bytes(CONTENT)
  assert zoo.fetch(NAME, tmp_path) == tmp_path / FILE
  assert server.requests == []
  assert (tmp_path / f'{FILE}.sha256').read_text().startswith(hashlib.sha256(CONTENT).hexdigest())


def test_a_page_placed_by_hand_is_refused_and_the_file_after_it_taken(server, tmp_path):
  (tmp_path / FILE).write_text('<html>')
  with pytest.raises(UserError, match='is no pickle'):
    zoo.fetch(NAME, tmp_path)
  (tmp_path / FILE).write_bytes(CONTENT)
  assert zoo.fetch(NAME, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize('changed', [CONTENT[:-1], CONTENT[:-1] + b'!', CONTENT + b'!'])
def test_a_file_that_has_changed_is_refused(server, tmp_path, changed):
  path = zoo.fetch(NAME, tmp_path)
  path.write_bytes(changed)
  with pytest.raises(UserError, match='not what it was when it was first used'):
    zoo.fetch(NAME, tmp_path)


def test_what_is_fetched_again_must_be_what_was_trusted(server, tmp_path):
  zoo.fetch(NAME, tmp_path).unlink()
  server.answer = send(CONTENT[:-1] + b'!')
  with pytest.raises(UserError, match='not what it was when it was first used'):
    zoo.fetch(NAME, tmp_path)
  assert names(tmp_path) == {f'{FILE}.sha256'}
  server.answer = send(CONTENT)
  assert zoo.fetch(NAME, tmp_path).read_bytes() == CONTENT


def test_an_unknown_name_lists_the_known(tmp_path):
  with pytest.raises(UserError, match=r'no released model.*imagenet_fourier.*video_autoencoding'):
    zoo.fetch('imagenet', tmp_path)


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=f'cannot make the cache {tmp_path / "file"}.*XDG_CACHE_HOME'):
    zoo.fetch(NAME, tmp_path / 'file')
