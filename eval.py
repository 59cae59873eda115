"""Evaluates a run from its folder alone, `python eval.py --workdir=runs/digits`, or any model; --help says more."""

import sys

from perceiver_jax.commands.eval import evaluate

if __name__ == '__main__':
  sys.exit(evaluate())
