# From nothing (git, make and Python 3.11 or newer): `make digits` trains a Perceiver, `make test` checks one.
# Whichever comes first makes the one .venv; `make clean` forgets it, for instance to take another PYTHON.

# A name on the path is not yet an interpreter (version managers leave shims, Debian leaves out ensurepip): run it.
IS_USABLE := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.12 python3.11 python3.13 python3 python; do \
	$$python -c '$(IS_USABLE)' >/dev/null 2>&1 && echo $$python && break; done)

BIN := .venv/bin
BIN_TF := .venv-tf/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement
NAME ?= imagenet2012
NUM_WORKERS ?= 2
TIMES ?= 25
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help digits permuted soak imagenet test test-slow test-tf fuzz package lint clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

digits: .venv/.requirements  ## train Perceiver IO on handwritten digits into runs/digits (ARGS='--config.seed=1')
	$(BIN)/python train.py --config=configs/digits.py --workdir=runs/digits $(ARGS)

permuted: .venv/.requirements  ## train five kinds of models on raw and on permuted images: an hour (ARGS=--quick: 7 minutes)
	$(BIN)/python -m benchmarks.permuted $(ARGS)

soak: .venv/.requirements  ## kill training runs for half an hour, and 20 more: an hour (ARGS='--minutes=5 --seeds=3')
	$(BIN)/python -m benchmarks.soak $(ARGS)

imagenet:  ## build ImageNet for training in DATA=DIR, from its two tars there (NAME=cifar10); see docs/data.md
	@$(if $(DATA),,echo 'DATA is missing: the directory of the tars. For example: make imagenet DATA=/data (see docs/data.md)' >&2; exit 1)
	@$(MAKE) --no-print-directory .venv-tf/.requirements
	@$(BIN_TF)/python -m perceiver_jax.data.build --name='$(NAME)' --data='$(DATA)'

test: .venv/.requirements-test  ## what a newcomer runs (ARGS='-k attention', NUM_WORKERS=8)
	$(BIN)/python -m pytest --numprocesses $(NUM_WORKERS) --dist worksteal -m 'not slow' $(ARGS)

test-slow: .venv/.requirements-test  ## the rest: what trains for a while, kills processes, fills disks
	$(BIN)/python -m pytest --numprocesses $(NUM_WORKERS) --dist worksteal -m slow $(ARGS)

test-tf: .venv/.requirements-test .venv-tf/.requirements  ## build data with TensorFlow, read it without
	PERCEIVER_TF_PYTHON=$(BIN_TF)/python $(BIN)/python -m pytest tests/tf $(ARGS)

fuzz: .venv/.requirements-test  ## over 100,000 broken and hostile inputs, new ones each time: 8 minutes of one core (TIMES=100 for more)
	PERCEIVER_FUZZ=$(TIMES) $(BIN)/python -m pytest tests/fuzz --numprocesses $(NUM_WORKERS) --dist worksteal --maxfail 1 $(ARGS)

package:  ## build the wheel, install it alone into a new environment, and use it there
	@rm -rf build dist .cache/package && $(PYTHON) -m venv .cache/package
	@.cache/package/bin/python -m pip install --quiet --disable-pip-version-check .
	@.cache/package/bin/python -m pip check
	@cd .cache && package/bin/python ../examples/resampler.py
	@.cache/package/bin/python -m pip list --disable-pip-version-check --format freeze | wc -l

lint: .venv/.requirements-test  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove .venv, .venv-tf, caches and built packages; keep runs/
	rm -rf .venv .venv-tf .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info

# A half-installed wheel looks installed to pip, so an interrupted install starts again from an empty .venv. A .venv
# that make did not begin, or whose user has since added a GPU's jaxlib, is only added to.
.venv/.requirements: requirements.txt
	@$(if $(PYTHON),,echo 'No Python 3.11 or newer with venv found (Debian, Ubuntu: apt install python3-venv). Then: make PYTHON=/path/to/python3' >&2; exit 1)
	@$(PYTHON) -c '$(IS_USABLE)' || { echo '$(PYTHON) is not Python 3.11 or newer with venv. Then: make PYTHON=/path/to/python3' >&2; exit 1; }
	@if [ -e .venv/.unfinished ] || ! $(BIN)/python -c 'import pip; $(IS_USABLE)' 2>/dev/null; then $(PYTHON) -m venv --clear .venv; fi
	@echo 'Installing requirements.txt into .venv: about a minute, 1 GB'
	@touch .venv/.unfinished
	@$(INSTALL) requirements.txt
	@rm .venv/.unfinished
	@touch $@

.venv/.requirements-test: requirements-test.txt .venv/.requirements
	@echo 'Installing requirements-test.txt into .venv'
	@touch .venv/.unfinished && rm .venv/.requirements
	@$(INSTALL) requirements-test.txt
	@rm .venv/.unfinished
	@touch .venv/.requirements $@

# TensorFlow stays out of .venv: it is larger than all the rest, and only building data needs it.
.venv-tf/.requirements: requirements-tf.txt
	@$(PYTHON) -c '$(IS_USABLE)' || { echo '$(PYTHON) is not Python 3.11 or newer with venv. Then: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv-tf
	@echo 'Installing requirements-tf.txt into .venv-tf: about two minutes, 2 GB'
	@$(BIN_TF)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-tf.txt
	@touch $@
