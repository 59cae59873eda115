"""Runs a command: `python -m perceiver_jax train|eval|predict|convert|plan`; once installed, `perceiver train` ..."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
  'train': 'train', 'eval': 'evaluate', 'predict': 'predict', 'convert': 'convert', 'plan': 'plan',
  'prepare_records': 'prepare_records'}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command that the first argument names, and returns its exit code; 2 where there is no such command."""
  program, *arguments = sys.argv if argv is None else argv
  command = arguments[0] if arguments else ''
  if command in ('-h', '--help'):
    print(f'perceiver COMMAND ..., where COMMAND is {", ".join(COMMANDS)}; perceiver COMMAND --help says more')
    return 0
  if command not in COMMANDS:
    print(f'error: there is no command {command!r}; the commands are {", ".join(COMMANDS)}', file=sys.stderr)
    return 2
  run = getattr(importlib.import_module(f'perceiver_jax.commands.{command}'), COMMANDS[command])
  return run([f'{program} {command}', *arguments[1:]])


if __name__ == '__main__':
  sys.exit(main())
