"""Which process this is: by flags, by launchers, and by itself wherever it is not certain."""

import pytest

from lmjax.parallel import cluster

SLURM = dict(
  SLURM_JOB_ID='4097',
  SLURM_STEP_NODELIST='node[003-010]',
  SLURM_NTASKS='16',
  SLURM_STEP_NUM_TASKS='16',
  SLURM_STEP_TASKS_PER_NODE='2(x8)',
  SLURM_PROCID='5',
  SLURM_LOCALID='1',
)
OPENMPI = dict(
  OMPI_MCA_orte_hnp_uri='1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
  OMPI_COMM_WORLD_SIZE='4',
  OMPI_COMM_WORLD_RANK='3',
  OMPI_COMM_WORLD_LOCAL_RANK='0',
  OMPI_COMM_WORLD_LOCAL_SIZE='1',
)
TPU = dict(TPU_WORKER_HOSTNAMES='localhost,b,c,d', TPU_WORKER_ID='2')


@pytest.fixture(autouse=True)
def bare(monkeypatch):
  """An environment without any launcher."""
  import os

  for key in list(os.environ):
    if key.startswith(('SLURM', 'OMPI', 'TPU_', 'MEGASCALE', 'KUBERNETES', 'JAX_COORD', 'CUDA_V')):
      monkeypatch.delenv(key)
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')


def find(monkeypatch, env, mode='auto', **flags):
  for key, value in env.items():
    monkeypatch.setenv(key, value)
  how = dict(coordinator=None, count=1, index=0, seconds=1.0) | flags
  return cluster.find(mode, **how)


def test_by_itself_without_a_launcher(monkeypatch):
  assert find(monkeypatch, {}) is None


def test_a_step_of_slurm(monkeypatch):
  found = find(monkeypatch, SLURM)
  assert (found.count, found.index, found.devices) == (16, 5, (1,))
  assert found.address == 'node003:61441'  # in the range that jobs share, by the job's number


def test_one_task_of_a_node_takes_all_its_devices(monkeypatch):
  """JAX by itself gives it the first one only."""
  found = find(monkeypatch, SLURM | dict(SLURM_STEP_TASKS_PER_NODE='1(x16)', SLURM_LOCALID='0'))
  assert found.devices is None


def test_a_task_that_sees_one_device_takes_that(monkeypatch):
  assert find(monkeypatch, SLURM | dict(CUDA_VISIBLE_DEVICES='3')).devices is None


@pytest.mark.parametrize(
  'env',
  [
    # salloc's shell: a step of one within an allocation of many
    SLURM | dict(SLURM_STEP_NUM_TASKS='1', SLURM_PROCID='0'),
    # a batch script, or a shell, that was not started by srun
    {k: v for k, v in SLURM.items() if 'STEP' not in k},
    dict(OPENMPI, OMPI_COMM_WORLD_SIZE='1', OMPI_COMM_WORLD_RANK='0'),
    dict(KUBERNETES_SERVICE_HOST='10.0.0.1', JOB_COMPLETION_INDEX='1'),
    TPU,  # no TPU is attached to this machine
    dict(TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0'),
  ],
)
def test_nothing_is_guessed(monkeypatch, env):
  assert find(monkeypatch, env) is None


def test_a_script_without_srun_is_told_so(monkeypatch, capsys):
  find(monkeypatch, {k: v for k, v in SLURM.items() if 'STEP' not in k})
  assert 'srun did not start this process' in capsys.readouterr().err


def test_open_mpi(monkeypatch):
  found = find(monkeypatch, OPENMPI)
  assert (found.count, found.index, found.devices) == (4, 3, None)
  assert found.address.startswith('10.96.0.1:')


@pytest.mark.parametrize('slices', [1, 2])
def test_a_tpu_slice(monkeypatch, slices):
  from jax._src.clusters import cloud_tpu_cluster

  monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
  more = dict(MEGASCALE_COORDINATOR_ADDRESS='localhost:8080', MEGASCALE_SLICE_ID='1')
  more = {} if slices == 1 else more | dict(MEGASCALE_NUM_SLICES='2')
  if slices == 1:  # what is not in the environment is asked of a server, which there is not
    monkeypatch.setattr(cloud_tpu_cluster, 'get_tpu_env_value_from_metadata', lambda key: None)
  found = find(monkeypatch, TPU | more)
  assert (found.count, found.index, found.devices) == (4 * slices, 2 + 4 * (slices - 1), None)
  assert found.address == 'localhost:8482'


def test_a_tpu_that_no_server_knows_runs_by_itself(monkeypatch):
  from jax._src.clusters import cloud_tpu_cluster

  def absent(key):
    raise ConnectionError(key)

  monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
  monkeypatch.setattr(cloud_tpu_cluster, 'get_metadata', absent)
  monkeypatch.delenv('TPU_SKIP_MDS_QUERY')
  assert find(monkeypatch, {}) is None
  assert find(monkeypatch, dict(TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0')) is None


def test_off_and_flags_win(monkeypatch):
  assert find(monkeypatch, SLURM, 'off') is None
  found = find(monkeypatch, SLURM, coordinator='[::1]:99', count=2, index=1)
  assert found == cluster.Place('[::1]:99', 2, 1, None, 'flags')


@pytest.mark.parametrize(
  'env, mode, said',
  [
    ({}, 'on', '--distributed=on: nothing in the environment says'),
    (OPENMPI, 'slurm', '--distributed=slurm: nothing in the environment says'),
    ({}, 'srun', '--distributed=srun: one of auto, on, off'),
    (SLURM | dict(SLURM_PROCID='x'), 'auto', 'slurm started this process, but does not say how'),
  ],
)
def test_what_is_asked_for_and_not_there_is_refused(monkeypatch, env, mode, said):
  with pytest.raises(ValueError, match=said):
    find(monkeypatch, env, mode)
