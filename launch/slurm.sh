#!/usr/bin/env bash
# Trains under SLURM. From the folder of the clone:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh \
#     --config=configs/imagenet.py:conv --workdir=/shared/runs/conv --config.data.path=/shared/imagenet2012
#
# starts a process for each GPU; with --ntasks-per-node=1 a process for each node, which takes all its GPUs; without
# --gpus-per-node the CPUs train. JAX finds the processes by itself.
#
# A run that is interrupted and saved (before --time is over, or by `scancel --signal=TERM JOB`), or one of whose
# processes is killed, goes back to the queue and resumes. Its log is perceiver-JOB.log.
#
# In the environment: VENV, the virtual environment, .venv if not given; MAX_RESTARTS, 50 if not given.

#SBATCH --job-name=perceiver
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
#SBATCH --requeue
# To the processes, not to this script, two minutes before the end: time for a step and for saving.
#SBATCH --signal=TERM@120

set -euo pipefail

if [[ ! -f train.py ]]; then
  echo "error: no train.py in $PWD: submit from the folder of the clone" >&2
  exit 2
fi
# shellcheck disable=SC1091
source "${VENV:-.venv}/bin/activate"

# Under SLURM JAX gives a process one GPU, unless told otherwise.
if (( ${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES} == SLURM_JOB_NUM_NODES && ${SLURM_GPUS_ON_NODE:-0} > 1 )); then
  JAX_LOCAL_DEVICE_IDS=$(seq --separator=, 0 $(( SLURM_GPUS_ON_NODE - 1 )))
  export JAX_LOCAL_DEVICE_IDS
fi
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun no longer takes it from sbatch
fi

# Processes end together by themselves, saved, with one exit code; --kill-on-bad-exit=1 would kill them on the way.
# --wait is for those that cannot: two minutes after the first has ended, the others are killed.
exit_code=0
srun --kill-on-bad-exit=0 --wait=120 python train.py "$@" || exit_code=$?

# 75: interrupted and saved. More than 128: a process was killed by a signal, and the others have stopped.
if (( exit_code == 75 || exit_code > 128 )) && (( ${SLURM_RESTART_COUNT:-0} < ${MAX_RESTARTS:-50} )); then
  echo "exit code $exit_code: back to the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$exit_code"
