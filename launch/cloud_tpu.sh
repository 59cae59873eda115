#!/usr/bin/env bash
# Trains on a Cloud TPU slice, with a process on each of its machines; JAX finds them by itself. Run by run:
#
#   launch/cloud_tpu.sh create     a slice; with QUEUED=1 asked for by a queued resource, with SPOT=1 cheap and pre-emptible
#   launch/cloud_tpu.sh status     whether it is there yet
#   launch/cloud_tpu.sh copy       the last commit of this clone, to ~/perceiver on each machine
#   launch/cloud_tpu.sh install    Python and the requirements there
#   launch/cloud_tpu.sh train --config=configs/imagenet.py:conv --workdir=/mnt/runs/conv ...
#   launch/cloud_tpu.sh log        what process 0 says, until Ctrl-C, which leaves the run alone (WORKER=all: what all say)
#   launch/cloud_tpu.sh stop       saves and stops; `train` with the same arguments resumes
#   launch/cloud_tpu.sh delete     the slice, with its disks
#
# `train` returns at once: systemd keeps the run going on the machines, and starts it again after exit code 75 or a kill,
# 50 times a day at most.
# The workdir is written by process 0 alone. Where the slice may be taken away, put it on a disk that stays, such as a
# Filestore share that is mounted there.
#
# In the environment: NAME, ZONE, TYPE and VERSION as below; DRY_RUN=1 prints what would be done, and does nothing.
# A slice of several machines needs your key in an agent: ssh-add ~/.ssh/google_compute_engine

set -euo pipefail

NAME=${NAME:-perceiver}
ZONE=${ZONE:-us-central2-b}
TYPE=${TYPE:-v4-32}
VERSION=${VERSION:-tpu-ubuntu2204-base}

run() {
  { printf '+'; printf ' %q' "$@"; printf '\n'; } >&2
  [[ ${DRY_RUN:-0} == 1 ]] || "$@"
}

on() {  # WORKERS COMMAND
  run gcloud compute tpus tpu-vm ssh "$NAME" "--zone=$ZONE" "--worker=$1" "--command=$2"
}

create() {
  local options=("--zone=$ZONE" "--accelerator-type=$TYPE")
  [[ ${SPOT:-0} != 1 ]] || options+=(--spot)
  if [[ ${QUEUED:-0} == 1 ]]; then
    run gcloud compute tpus queued-resources create "$NAME" "--node-id=$NAME" "--runtime-version=$VERSION" "${options[@]}"
  else
    run gcloud compute tpus tpu-vm create "$NAME" "--version=$VERSION" "${options[@]}"
  fi
}

status() {
  if [[ ${QUEUED:-0} == 1 ]]; then
    run gcloud compute tpus queued-resources describe "$NAME" "--zone=$ZONE" '--format=value(state.state)'
  else
    run gcloud compute tpus tpu-vm describe "$NAME" "--zone=$ZONE" '--format=value(state)'
  fi
}

copy() {
  local folder
  folder=$(mktemp -d)
  run git archive --format=tar.gz "--output=$folder/perceiver.tar.gz" HEAD
  run gcloud compute tpus tpu-vm scp "$folder/perceiver.tar.gz" "$NAME:perceiver.tar.gz" "--zone=$ZONE" --worker=all
  rm -r "$folder"
  on all 'mkdir -p perceiver && tar -xzf perceiver.tar.gz -C perceiver'
}

install() {  # the machines' own Python is too old
  on all 'cd perceiver && python3 -m pip install --quiet --user uv && ~/.local/bin/uv venv --quiet --python=3.12 .venv &&
    ~/.local/bin/uv pip install --quiet --requirement=requirements.txt "jax[tpu]"'
}

train() {
  local arguments
  printf -v arguments ' %q' "$@"
  on all 'cd perceiver && sudo systemd-run --unit=perceiver --collect --uid="$(id -un)" --working-directory="$PWD" \
    --property=Restart=on-failure --property=RestartSec=10 --property=RestartPreventExitStatus="1 2 3 70" \
    --property=StartLimitIntervalSec=86400 --property=StartLimitBurst=50 --property=TimeoutStopSec=300 \
    --property=LimitMEMLOCK=infinity --property=LimitNOFILE=65536 \
    "$PWD/.venv/bin/python" train.py'"$arguments"
}

log() {
  on "${WORKER:-0}" 'sudo journalctl --unit=perceiver --output=cat --lines=50 --follow'
}

stop() {
  on all 'sudo systemctl stop perceiver'
}

delete() {
  if [[ ${QUEUED:-0} == 1 ]]; then
    run gcloud compute tpus queued-resources delete "$NAME" "--zone=$ZONE" --force --quiet
  else
    run gcloud compute tpus tpu-vm delete "$NAME" "--zone=$ZONE" --quiet
  fi
}

case ${1:-} in
  create | status | copy | install | log | stop | delete)
    if (( $# > 1 )); then
      echo "error: $1 takes no arguments, got: ${*:2}" >&2
      exit 2
    fi
    "$1" ;;
  train) train "${@:2}" ;;
  *)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2 ;;
esac
