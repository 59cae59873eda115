"""Evaluates a run from its folder alone, `python eval.py --workdir=runs/digits`, or any model; --help says more."""

import sys

from perceiver_jax import commands

if __name__ == '__main__':
  sys.exit(commands.evaluate())
