"""Trains what a config says: `python train.py --config=configs/digits.py --workdir=runs/digits`; --help says more."""

import sys

from perceiver_jax.commands.train import train

if __name__ == '__main__':
  sys.exit(train())
