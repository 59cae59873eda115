"""The recipes of launch/, each as far as it goes on one machine: the programs of a cluster have stand-ins on the PATH.

Two runs are real: two processes that find each other as under SLURM, and two with the command of Kubernetes' pods.
"""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import socket
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_STEPS = 4
ARGUMENTS = [
  '--config=configs/digits.py:debug', f'--config.num_steps={NUM_STEPS}', '--config.batch_size=8',
  '--config.optimizer.warmup_steps=1', '--config.checkpoint.every_steps=2', '--config.eval.every_steps=2',
  '--config.log.every_steps=3', '--config.model.num_latents=2', '--config.model.latent_channels=8',
  '--config.model.num_blocks=1', '--config.model.query_channels=8',
]
STEPS_OF_LINES = [2, 3, 4, 4, 4]  # validation, train, validation, train, test

# Starts two processes with what SLURM tells them, and ends with the highest exit code, as the real one does.
SRUN = """
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
for process in 0 1; do
  SLURM_PROCID=$process SLURM_LOCALID=$process "$@" &
done
highest=0
for process in 0 1; do
  code=0
  wait -n || code=$?
  highest=$(( code > highest ? code : highest ))
done
exit "$highest"
"""
# Records its arguments, and does on this machine what it is asked to do on the others.
GCLOUD = """
printf '%s\\n' "$*" >> "$RECORD"
case $4 in
  scp) cp "$5" "$HOME/${6#*:}" ;;
  ssh) cd "$HOME" && bash -euc "${!#/#--command=/}" ;;
esac
"""


class Machine:
  """A machine with stand-ins for programs that it lacks, and a record of what they were told."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.record = folder, folder / 'record'
    for name in ('bin', 'home', 'venv/bin'):
      (folder / name).mkdir(parents=True)
    python = shlex.quote(str(pathlib.Path(sys.executable).parent))
    (folder / 'venv' / 'bin' / 'activate').write_text(f'PATH={python}:$PATH')

  def has(self, program: str, script: str) -> None:
    path = self.folder / 'bin' / program
    path.write_text(f'#!/usr/bin/env bash\n{script}')
    path.chmod(0o755)

  def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith('SLURM_')} | {
      'PATH': f'{self.folder}/bin:{os.environ["PATH"]}', 'HOME': str(self.folder / 'home'), 'RECORD': str(self.record),
      'VENV': str(self.folder / 'venv'), **TWO_DEVICES, **variables}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

  def told(self) -> list[str]:
    return self.record.read_text().splitlines() if self.record.exists() else []


TWO_DEVICES = {'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)


def _lines(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def _free_port(ports: range) -> int:
  for port in ports:
    with socket.socket() as one:
      try:
        one.bind(('', port))
        return port
      except OSError:
        continue
  raise AssertionError('no port is free')


@pytest.mark.parametrize('script', sorted((ROOT / 'launch').glob('*.sh')), ids=lambda path: path.name)
def test_bash_understands_every_script_and_may_start_it(script):
  assert subprocess.run(['bash', '-n', script], check=False).returncode == 0
  assert os.access(script, os.X_OK)


# SLURM.


def _batch(machine: Machine, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
  job = {'SLURM_JOB_ID': '7', 'SLURM_JOB_NUM_NODES': '1', **variables}
  return machine.run('bash', 'launch/slurm.sh', *arguments, **job)


@pytest.mark.slow
def test_processes_under_slurm_find_each_other_and_train_one_run(machine, tmp_path):
  first_port = 65536 - 2**12  # JAX makes a port of the number of the job
  machine.has('srun', SRUN)
  machine.has('scontrol', 'echo "$*" >> "$RECORD"')
  port = _free_port(range(first_port + os.getpid() % 2000, 65536))
  ended = _batch(machine, *ARGUMENTS, f'--workdir={tmp_path}/run', SLURM_JOB_ID=str(port - first_port))
  assert ended.returncode == 0, ended.stderr
  lines = _lines(tmp_path / 'run')
  assert [line['step'] for line in lines] == STEPS_OF_LINES
  rate, rate_per_device = (lines[1][f'speed/examples_per_second{end}'] for end in ('', '_per_device'))
  assert round(rate / rate_per_device) == 4
  assert machine.told() == []


@pytest.mark.parametrize(('exit_code', 'restarts', 'is_requeued'), [
  (0, 0, False), (1, 0, False), (2, 0, False), (3, 0, False), (70, 0, False),
  (75, 0, True), (75, 49, True), (75, 50, False), (137, 0, True),
])
def test_slurm_runs_again_what_was_saved_or_killed_and_nothing_else(machine, exit_code, restarts, is_requeued):
  machine.has('srun', f'exit {exit_code}')
  machine.has('scontrol', 'echo "$*" >> "$RECORD"')
  ended = _batch(machine, SLURM_RESTART_COUNT=str(restarts))
  assert ended.returncode == exit_code
  assert machine.told() == (['requeue 7'] if is_requeued else [])


@pytest.mark.parametrize(('variables', 'devices'), [
  ({'SLURM_NTASKS': '2'}, '0,1,2,3'), ({}, '0,1,2,3'), ({'SLURM_NTASKS': '8'}, 'its own'),
])
def test_a_process_under_slurm_takes_all_gpus_where_it_is_alone_on_its_node(machine, variables, devices):
  machine.has('srun', 'echo "${JAX_LOCAL_DEVICE_IDS:-its own}"; echo "$*" >&2')
  ended = _batch(machine, '--workdir=a b', SLURM_JOB_NUM_NODES='2', SLURM_GPUS_ON_NODE='4', **variables)
  assert ended.stdout == f'{devices}\n'
  assert ended.stderr.endswith(' python train.py --workdir=a b\n')


def test_slurm_says_where_to_submit_from(machine, tmp_path):
  ended = subprocess.run(['bash', ROOT / 'launch/slurm.sh'], cwd=tmp_path, capture_output=True, text=True, check=False)
  assert ended.returncode == 2
  assert 'submit from the folder of the clone' in ended.stderr


# Cloud TPU.


def _tpu(machine: Machine, *words: str, **variables: str) -> subprocess.CompletedProcess:
  return machine.run('launch/cloud_tpu.sh', *words, NAME='slice', ZONE='zone', **variables)


@pytest.mark.parametrize(('command', 'variables', 'told'), [
  ('create', {}, 'tpu-vm create slice --version=image --zone=zone --accelerator-type=v6e-16'),
  ('create', {'QUEUED': '1', 'SPOT': '1'}, 'queued-resources create slice --node-id=slice --runtime-version=image '
                                           '--zone=zone --accelerator-type=v6e-16 --spot'),
  ('status', {}, 'tpu-vm describe slice --zone=zone --format=value(state)'),
  ('status', {'QUEUED': '1'}, 'queued-resources describe slice --zone=zone --format=value(state.state)'),
  ('delete', {}, 'tpu-vm delete slice --zone=zone --quiet'),
  ('delete', {'QUEUED': '1'}, 'queued-resources delete slice --zone=zone --force --quiet'),
])
def test_cloud_tpu_asks_for_the_slice_that_was_named(machine, command, variables, told):
  machine.has('gcloud', GCLOUD)
  ended = _tpu(machine, command, TYPE='v6e-16', VERSION='image', **variables)
  assert ended.returncode == 0, ended.stderr
  assert machine.told() == [f'compute tpus {told}']


def test_cloud_tpu_trains_what_is_committed_with_the_arguments_as_given(machine, tmp_path):
  machine.has('gcloud', GCLOUD)
  machine.has('sudo', 'printf "%s\\n" "$@" > "$HOME/sudo"')
  arguments = ['--config=configs/digits.py:debug', "--workdir=a 'quoted' $HOME"]
  for words in (['copy'], ['train', *arguments]):
    ended = _tpu(machine, *words)
    assert ended.returncode == 0, ended.stderr
  there = tmp_path / 'home' / 'perceiver'
  assert (there / 'train.py').is_file()
  told = (tmp_path / 'home' / 'sudo').read_text().splitlines()
  assert told[0] == 'systemd-run'
  assert told[-4:] == [f'{there}/.venv/bin/python', 'train.py', *arguments]
  assert '--property=RestartPreventExitStatus=1 2 3 70' in told
  assert all('--worker=all' in line for line in machine.told() if line.startswith('compute'))


@pytest.mark.parametrize('command', ['create', 'status', 'copy', 'install', 'train', 'log', 'stop', 'delete'])
def test_a_dry_run_says_each_command_and_does_none(machine, command):
  machine.has('gcloud', GCLOUD)
  ended = _tpu(machine, command, DRY_RUN='1')
  assert ended.returncode == 0, ended.stderr
  assert all(line.startswith('+ ') for line in ended.stderr.splitlines())
  assert '+ gcloud compute tpus ' in ended.stderr
  assert machine.told() == []


@pytest.mark.parametrize('words', [[], ['trian'], ['stop', 'now']])
def test_cloud_tpu_answers_a_mistake_with_exit_code_2(machine, words):
  machine.has('gcloud', GCLOUD)
  ended = _tpu(machine, *words)
  assert ended.returncode == 2
  assert ('takes no arguments, got: now' if len(words) > 1 else 'launch/cloud_tpu.sh create') in ended.stderr
  assert machine.told() == []


# Kubernetes.


@pytest.fixture
def jobset() -> dict:
  return yaml.safe_load((ROOT / 'launch' / 'kubernetes.yaml').read_text())


def _job(jobset: dict) -> dict:
  [workers] = jobset['spec']['replicatedJobs']
  assert workers['replicas'] == 1
  return workers['template']['spec']


def test_pods_join_under_the_name_that_kubernetes_gives_the_first(jobset):
  job, network = _job(jobset), jobset['spec']['network']
  [container] = job['template']['spec']['containers']
  host = f'{jobset["metadata"]["name"]}-{jobset["spec"]["replicatedJobs"][0]["name"]}-0-0.{network["subdomain"]}'
  assert network['enableDNSHostnames'] and job['completionMode'] == 'Indexed'
  assert f'--coordinator_address={host}:8476' in container['command']
  assert job['parallelism'] == job['completions']
  assert f'--num_processes={job["completions"]}' in container['command']


def test_pods_start_again_together_but_not_after_a_mistake(jobset):
  job, policy = _job(jobset), jobset['spec']['failurePolicy']
  [rule] = job['podFailurePolicy']['rules']
  [container] = job['template']['spec']['containers']
  assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  assert rule['action'] == 'FailJob' and rule['onExitCodes'] == {
    'containerName': container['name'], 'operator': 'In', 'values': [1, 2, 3, 70]}
  [end] = policy['rules']
  assert (end['action'], end['onJobFailureReasons']) == ('FailJobSet', ['PodFailurePolicy'])
  assert policy['maxRestarts'] > 0 and job['backoffLimit'] == 0
  assert job['template']['spec']['restartPolicy'] == 'Never'  # the only one that podFailurePolicy goes with
  assert job['template']['spec']['terminationGracePeriodSeconds'] > 60


def test_the_workdir_of_pods_is_on_storage_that_stays(jobset):
  pod = _job(jobset)['template']['spec']
  [container] = pod['containers']
  mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
  assert set(mounts) == {volume['name'] for volume in pod['volumes']}
  [claim] = [volume['name'] for volume in pod['volumes'] if 'persistentVolumeClaim' in volume]
  assert any(word.startswith(f'--workdir={mounts[claim]}/') for word in container['command'])


@pytest.mark.slow
def test_the_command_of_the_pods_trains_and_process_0_alone_needs_storage(jobset, tmp_path):
  job = _job(jobset)
  [container] = job['template']['spec']['containers']
  port = _free_port(range(20_000 + os.getpid() % 10_000, 32_000))
  pods = []
  for index in range(job['completions']):
    words = [
      word.replace('$(JOB_COMPLETION_INDEX)', str(index)).replace('/runs/', f'{tmp_path}/pod{index}/')
      for word in container['command']]
    words = [f'--coordinator_address=localhost:{port}' if 'coordinator' in word else word for word in words]
    pods.append(subprocess.Popen(
      [sys.executable, *words[1:], *ARGUMENTS], cwd=ROOT, env={**os.environ, **TWO_DEVICES}, stderr=subprocess.PIPE,
      text=True))
  errors = [pod.communicate()[1] for pod in pods]
  assert [pod.returncode for pod in pods] == [0, 0], errors
  assert [line['step'] for line in _lines(tmp_path / 'pod0' / 'digits')] == STEPS_OF_LINES
  assert not (tmp_path / 'pod1').exists()
