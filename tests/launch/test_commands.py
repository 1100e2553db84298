"""Every script of `launch/`: what it would run is what it runs, and what the tools accept."""

import json
import pathlib
import re
import shlex
import subprocess
import tomllib

import _tools
import jsonschema
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / 'launch'
SCHEMA = ROOT / 'tests' / 'experiment' / 'jobset_v1alpha2.json'
TRAIN = ['--', '--config=gpt2', '--workdir=gs://b/r', "--config.data.train=text(path='x y')"]
WHERE = ['--name=run-1', '--zone=us-west4-a']
IMAGE = '--image=example.com/lmjax:1'
TPU = ['--type=v5litepod-16', '--version=v2-alpha-tpuv5-lite']
POD = ['--tpu=tpu-v5-lite-podslice', '--topology=4x4']

GOOD = [
  ['tpu_vm.sh', 'create', *WHERE, *TPU],
  ['tpu_vm.sh', 'create', *WHERE, *TPU, '--spot', '--project=p', '--service-account=a@b'],
  ['tpu_vm.sh', 'pull', *WHERE, IMAGE],
  ['tpu_vm.sh', 'start', *WHERE, IMAGE, *TRAIN],
  ['tpu_vm.sh', 'logs', *WHERE],
  ['tpu_vm.sh', 'stop', *WHERE],
  ['tpu_vm.sh', 'delete', *WHERE, '--project=p'],
  ['queued.sh', 'create', *WHERE, *TPU, '--spot', '--valid-until=6h'],
  ['queued.sh', 'create', *WHERE, *TPU, '--reserved', '--project=p'],
  ['queued.sh', 'status', *WHERE],
  ['queued.sh', 'pull', *WHERE, IMAGE],
  ['queued.sh', 'start', *WHERE, IMAGE, *TRAIN],
  ['queued.sh', 'logs', *WHERE],
  ['queued.sh', 'stop', *WHERE],
  ['queued.sh', 'delete', *WHERE],
  ['xpk.sh', 'start', '--cluster=c', *WHERE, TPU[0], IMAGE, *TRAIN],
  ['xpk.sh', 'list', '--cluster=c', *WHERE],
  ['xpk.sh', 'delete', '--cluster=c', *WHERE, '--project=p'],
  ['gke.sh', 'apply', WHERE[0], IMAGE, *POD, *TRAIN],
  ['gke.sh', 'status', WHERE[0], '--namespace=lm'],
  ['gke.sh', 'logs', WHERE[0]],
  ['gke.sh', 'delete', WHERE[0]],
  ['gpu.sh', 'start', WHERE[0], IMAGE, *TRAIN],
  ['gpu.sh', 'start', WHERE[0], IMAGE, '--runs=/data', '--', '--config=a', '--workdir=/runs/x'],
  ['gpu.sh', 'logs', WHERE[0]],
  ['gpu.sh', 'stop', WHERE[0]],
  ['slurm.sh', 'submit', WHERE[0], '--nodes=2', '--gpus=8', '--time=1-12:00:00', *TRAIN],
  ['slurm.sh', 'submit', WHERE[0], '--nodes=1', '--gpus=0', '--partition=p', '--qos=q', *TRAIN],
]


@pytest.fixture
def env(tmp_path):
  return _tools.install(tmp_path)


def launch(words, env):
  command = [str(LAUNCH / words[0]), *words[1:]]
  return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def dry(words):
  """With --dry-run where options are: before what follows --."""
  at = words.index('--') if '--' in words else len(words)
  return [*words[:at], '--dry-run', *words[at:]]


def verbs_of(script):
  table = re.search(r'^VERBS=\((.*?)\)$', (LAUNCH / script).read_text(), re.MULTILINE | re.DOTALL)
  return ' '.join(re.findall(r"'([a-z ]+):", table[1])).split()


@pytest.mark.parametrize('words', GOOD, ids=lambda w: ' '.join(w[:2]))
def test_what_it_would_run_is_what_it_runs(env, words):
  shown = launch(dry(words), env)
  assert shown.returncode == 0 and not shown.stderr, shown.stderr
  assert not _tools.calls(env), 'a dry run called something'
  said = launch(words, {**env, 'DRY_RUN': '1'})
  assert said.stdout == shown.stdout
  ran = launch(words, env)
  assert ran.returncode == 0, ran.stderr
  (call,) = _tools.calls(env)
  assert call == {**_tools.check(shlex.split(shown.stdout.splitlines()[-1])), **_input(call)}


def _input(call):
  return {'input': call['input']} if 'input' in call else {}


def test_every_script_is_tried():
  scripts = {p.name for p in LAUNCH.glob('*.sh') if not p.name.startswith('_')}
  assert scripts - {w[0] for w in GOOD} == {'worker.sh'}
  for script in scripts - {'worker.sh'}:
    verbs = set(verbs_of(script)) - {'print'}
    assert verbs == {w[1] for w in GOOD if w[0] == script}, script


@pytest.mark.parametrize('script', ['tpu_vm.sh', 'queued.sh'])
def test_every_worker_gets_the_same_container(env, script):
  assert launch([script, 'start', *WHERE, IMAGE, *TRAIN], env).returncode == 0
  (call,) = _tools.calls(env)
  flags = call['flags']
  assert flags['worker'] == 'all' and flags.get('node', 'all') == 'all'
  run = shlex.split(flags['command'].split('; ', 1)[1])
  assert run[0] == 'sudo'
  found = _tools.check(['docker', 'run', *[w for w in run[3:] if w != '--net=host']])
  assert found['rest'] == [IMAGE.removeprefix('--image='), *TRAIN[1:]]


def test_xpk_starts_again_for_75_alone(env):
  words = [
    'xpk.sh',
    'start',
    '--cluster=c',
    *WHERE,
    TPU[0],
    IMAGE,
    '--restarts=7',
    '--slices=2',
    *TRAIN,
  ]
  assert launch(words, env).returncode == 0
  flags = _tools.calls(env)[0]['flags']
  assert (flags['max-restarts'], flags['restart-on-exit-codes']) == ('7', '75')
  assert flags['num-slices'] == '2'
  assert shlex.split(flags['command'])[-3:] == TRAIN[1:]


# ------------------------------------------------------------------ JobSet


def jobset(env, *options):
  out = launch(['gke.sh', 'print', '--name=run-1', IMAGE, *options, *TRAIN], env)
  assert out.returncode == 0, out.stderr
  found = yaml.safe_load(out.stdout)
  jsonschema.validate(found, json.loads(SCHEMA.read_text()))
  return found


@pytest.mark.parametrize(
  'options, hosts, resource',
  [
    (POD, 4, {'google.com/tpu': 4}),
    ([POD[0], '--topology=2x4', '--chips=8'], 1, {'google.com/tpu': 8}),
    (['--tpu=tpu-v5p-slice', '--topology=4x4x8'], 32, {'google.com/tpu': 4}),
    (['--gpu=nvidia-h100-80gb', '--gpus=8', '--hosts=2'], 2, {'nvidia.com/gpu': 8}),
    (['--gpu=nvidia-l4', '--gpus=1', '--service-account=ksa'], 1, {'nvidia.com/gpu': 1}),
  ],
)
def test_a_jobset(env, options, hosts, resource):
  found = jobset(env, *options)
  job = found['spec']['replicatedJobs'][0]['template']['spec']
  assert job['completions'] == job['parallelism'] == hosts
  pod = job['template']['spec']
  (container,) = pod['containers']
  assert container['resources']['limits'] == container['resources']['requests'] == resource
  assert container['args'] == TRAIN[1:]
  assert pod.get('serviceAccountName') == ('ksa' if '--service-account=ksa' in options else None)
  assert found['spec']['failurePolicy']['maxRestarts'] == 100
  # Names and number by which the workers join.
  env = {**env, **{e['name']: e['value'] for e in container['env']}, 'JOB_COMPLETION_INDEX': '0'}
  env |= {'LMJAX_PYTHON': 'echo'}
  worker = [LAUNCH / 'worker.sh', '--config=a']
  said = subprocess.run(worker, env=env, capture_output=True, text=True).stdout
  want = f' --coordinator=run-1-run-0-0.run-1:8476 --processes={hosts} --process=0'
  assert said.strip() == '-m lmjax.main --config=a' + (want if hosts > 1 else '')


def test_a_jobset_starts_again_for_75_and_not_for_what_needs_a_person(env):
  for options, person in ((POD, [2, 65, 74]), (['--gpu=nvidia-l4', '--gpus=1'], [1, 2, 65, 74])):
    found = jobset(env, *options, '--restarts=5')
    policy = found['spec']['failurePolicy']
    assert policy['maxRestarts'] == 5 and policy['restartStrategy'] == 'BlockingRecreate'
    (rule,) = policy['rules']
    assert rule['action'] == 'FailJobSet' and rule['onJobFailureReasons'] == ['PodFailurePolicy']
    job = found['spec']['replicatedJobs'][0]['template']['spec']
    ends, again = job['podFailurePolicy']['rules']
    assert ends['action'] == 'FailJob' and ends['onExitCodes']['values'] == person
    assert again['action'] == 'Count' and again['onExitCodes']['values'] == [75]
    assert job['backoffLimit'] == 0 and job['template']['spec']['restartPolicy'] == 'Never'


def test_words_of_a_jobset_are_taken_as_they_are(env):
  odd = ["--config.a=it's $(HOME) #1: {x}", '--config.b=[1, 2]']
  words = ['gke.sh', 'print', '--name=a', IMAGE, *POD, *TRAIN, *odd]
  found = yaml.safe_load(launch(words, env).stdout)
  args = found['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']['containers'][
    0
  ]['args']
  assert args[-2:] == ["--config.a=it's $$(HOME) #1: {x}", odd[1]]


# ------------------------------------------------------------------ bad input

BAD = [
  (['tpu_vm.sh', 'fly', *WHERE], 'expected: create, pull, start, logs, stop, delete'),
  (['tpu_vm.sh', 'logs stop', *WHERE], 'logs stop: there is no such verb'),
  (['tpu_vm.sh', *WHERE, 'logs'], '--name=run-1: there is no such verb'),
  (['tpu_vm.sh', '--', 'logs'], '--: there is no such verb'),
  (['tpu_vm.sh', 'logs', *WHERE, '--spot'], '--spot is unknown; logs takes --name=VALUE, --zone='),
  (['tpu_vm.sh', 'logs', *WHERE, *TRAIN], '-- is unknown; logs takes'),
  (['tpu_vm.sh', 'start', *WHERE, IMAGE, '--config=a'], 'after -- arguments of lmjax.main'),
  (['tpu_vm.sh', 'create', *WHERE, *TPU, '--spot=yes'], '--spot=yes: no value is expected'),
  (['tpu_vm.sh', 'create', *WHERE, *TPU, '--project='], '--project= needs a value'),
  (['tpu_vm.sh', 'create', *WHERE, *TPU, '----'], '---- is unknown'),
  (['tpu_vm.sh', 'create', *WHERE, *TPU, '-n'], '-n is unknown'),
  (['tpu_vm.sh', 'create', '--name=', WHERE[1], *TPU], '--name= needs a value'),
  (['tpu_vm.sh', 'create', '--name=Run', WHERE[1], *TPU], '--name=Run'),
  (['tpu_vm.sh', 'create', *WHERE, '--type=v5e-16', TPU[1]], '--type=v5e-16'),
  (['tpu_vm.sh', 'create', *WHERE, TPU[0]], '--version='),
  (['tpu_vm.sh', 'create', *WHERE, *TPU, '--spott'], '--spott is unknown'),
  (['tpu_vm.sh', 'create', WHERE[0], '--zone=us', *TPU], '--zone=us'),
  (['tpu_vm.sh', 'create', '--name', *TPU], '--name needs a value'),
  (['tpu_vm.sh', 'start', *WHERE, *TRAIN], '--image='),
  (['tpu_vm.sh', 'start', *WHERE, IMAGE], '--config=RECIPE'),
  (['tpu_vm.sh', 'start', *WHERE, IMAGE, '--', '--config=a', '--workdir=runs/x'], 'gs://'),
  (['tpu_vm.sh', 'start', *WHERE, IMAGE, *TRAIN, '--process=1'], 'same command'),
  (['queued.sh', 'create', *WHERE, *TPU, '--spot', '--reserved'], 'one of them'),
  (['queued.sh', 'create', *WHERE, *TPU, '--valid-until=soon'], '--valid-until=soon'),
  (['xpk.sh', 'start', *WHERE, TPU[0], IMAGE, *TRAIN], '--cluster='),
  (['xpk.sh', 'list', '--cluster=c', '--name=_', WHERE[1]], '--name=_'),
  (['gke.sh', 'apply', WHERE[0], IMAGE, *TRAIN], '--gpu='),
  (['gke.sh', 'apply', WHERE[0], IMAGE, POD[0], '--topology=4', *TRAIN], '--topology=4'),
  (['gke.sh', 'apply', WHERE[0], IMAGE, *POD, '--chips=3', *TRAIN], '--chips=3: a host'),
  (['gke.sh', 'apply', WHERE[0], IMAGE, *POD, '--hosts=2', *TRAIN], 'follow from --topology'),
  (['gpu.sh', 'start', WHERE[0], IMAGE, '--', '--config=a', '--workdir=/tmp/x'], 'bucket'),
  (['gke.sh', 'apply', WHERE[0], IMAGE, *POD, '--service-account=a: b', *TRAIN], 'Kubernetes'),
  (['gpu.sh', 'start', WHERE[0], IMAGE, '--gpus=no', *TRAIN], '--gpus=no'),
  (['gpu.sh', 'start', WHERE[0], IMAGE, '--runs=/a:ro', *TRAIN], 'without a colon'),
  (['slurm.sh', 'submit', WHERE[0], '--nodes=1', '--gpus=8', '--python=a,b', *TRAIN], '--python='),
  (['slurm.sh', 'submit', WHERE[0], '--gpus=8', *TRAIN], '--nodes='),
  (['slurm.sh', 'submit', WHERE[0], '--nodes=2', '--gpus=8', '--time=soon', *TRAIN], '--time=soon'),
  (
    ['slurm.sh', 'submit', WHERE[0], '--nodes=2', '--gpus=8', '--', '--config=a', '--workdir=x'],
    'all nodes see',
  ),
]


@pytest.mark.parametrize('words, said', BAD, ids=[' '.join(w) for w, _ in BAD])
def test_bad_options_are_told_in_a_sentence(env, words, said):
  out = launch(words, env)
  assert out.returncode == 2 and not _tools.calls(env)
  lines = out.stderr.splitlines()
  assert len(lines) == 1 and said in lines[0] and lines[0].startswith(words[0]), out.stderr


@pytest.mark.parametrize('script', sorted({w[0] for w in GOOD}))
def test_the_verb_comes_before_the_options_and_help_before_all(env, script):
  none, wrong = launch([script], env), launch([script, 'strt'], env)
  assert (none.returncode, wrong.returncode) == (2, 2) and not none.stdout + wrong.stdout
  (said,) = wrong.stderr.splitlines()
  assert 'strt: there is no such verb' in said and said.endswith(', '.join(verbs_of(script)))
  verb = verbs_of(script)[-1]
  unknown = launch([script, verb, '--nmae=a'], env).stderr
  assert f'--nmae=a is unknown; {verb} takes' in unknown  # before what is lacking
  assert f'{script}: --' in launch([script, verb], env).stderr
  for words in (['--help'], ['-h'], [verb, '-h'], [verb, '--name=_', '--help']):
    shown = launch([script, *words], env)
    assert shown.returncode == 0 and not shown.stderr
    assert shown.stdout == none.stderr and shown.stdout.startswith(
      f'{script} {verbs_of(script)[0]}'
    )
  options = set(re.findall(r'--([a-z-]+)=', none.stderr))
  table = re.search(r'VERBS=.*?begin[^\n]*', (LAUNCH / script).read_text(), re.DOTALL)[0]
  assert set(re.findall(r"(?<=[ '])[a-z-]+(?==)", table)) <= options, 'usage lacks an option'


def test_the_commands_of_the_page_are_accepted(env):
  text = (ROOT / 'docs' / 'launching.md').read_text()
  lines = [x for x in text.splitlines() if re.match(r'launch/[a-z_]+\.sh ', x)]
  assert {x.split()[0].removeprefix('launch/') for x in lines} == {w[0] for w in GOOD}
  for line in lines:
    line = re.sub(r'=(IMAGE|C|KSA|P)\b', lambda m: m[0].lower(), line)
    out = launch(dry([x.removeprefix('launch/') for x in shlex.split(line, comments=True)]), env)
    assert out.returncode == 0, (line, out.stderr)


def test_a_dry_run_is_one_or_is_refused(env):
  out = launch(['gpu.sh', 'stop', WHERE[0]], {**env, 'DRY_RUN': 'true'})
  assert out.returncode == 2 and 'DRY_RUN=true' in out.stderr and not _tools.calls(env)


def test_the_environment_sets_no_option(env):
  more = dict(name='a', zone='us-west4-a', project='q', spot='1', type='v5p-8', image='i', time='9')
  (words,) = [w for w in GOOD if w[:2] == ['tpu_vm.sh', 'create'] and '--spot' not in w]
  assert launch(words, {**env, **more}).returncode == 0
  flags = _tools.calls(env)[0]['flags']
  assert not {'spot', 'project'} & flags.keys() and flags['accelerator-type'] == 'v5litepod-16'
  assert '--name=' in launch(['gpu.sh', 'logs'], {**env, **more}).stderr


def test_a_tool_that_is_not_there_is_named(env):
  out = launch(['xpk.sh', 'list', '--cluster=c', *WHERE], {**env, 'PATH': '/usr/bin:/bin'})
  assert out.returncode == 2 and 'xpk is not on the PATH' in out.stderr


@pytest.mark.parametrize('script', ['tpu_vm.sh', 'gpu.sh', 'xpk.sh', 'slurm.sh'])
def test_odd_words_arrive_as_they_were_given(env, script):
  odd = [
    '--config.a=it\'s "$(HOME)" `x` * \\ é',
    '--config.b=[1, 2]',
    '',
    '--',
    '--workdir=gs://c/d e',
  ]
  (words, *_) = [
    w for w in GOOD if w[0] == script and w[1] in ('start', 'submit') and TRAIN[1] in w
  ]
  assert launch([*words, *odd], env).returncode == 0
  call = _tools.calls(env)[0]
  found = (
    shlex.split(_bash(call['flags']['command'])) if 'command' in call['flags'] else call['rest']
  )
  assert found[-len(odd) :] == odd


def _bash(command):
  """The words of the last command in `;`, as bash reads them (it alone knows $'...')."""
  last = command.rpartition('; ')[2]
  out = subprocess.run(['bash', '-c', f'printf "%s\\0" {last}'], capture_output=True, text=True)
  return shlex.join(out.stdout.split('\0')[:-1])


@pytest.mark.parametrize(
  'words, said',
  [
    ('gcloud compute tpus tpu-vm ssh x --command=a --batch-size=4', 'batch-size'),
    ('gcloud compute tpus tpu-vm create x --zone=z', 'lacks'),
    ('sbatch --job-name=a --nodes=1 --time=1 --gpu-per-node=8 x', 'gpu-per-node'),
    ('kubectl get jobset', '2 words'),
    ('docker run --detach=1 --name=x', 'a value is not'),
  ],
)
def test_the_stand_ins_refuse_what_the_tools_refuse(words, said):
  with pytest.raises(ValueError, match=said):
    _tools.check(words.split())


# ------------------------------------------------------------------ the container


def test_the_container_file_names_what_there_is():
  text = (LAUNCH / 'Dockerfile').read_text()
  for line in re.findall(r'^COPY (.*)$', text, re.MULTILINE):
    *sources, _ = [w for w in line.split() if not w.startswith('--')]
    for source in sources:
      assert (ROOT / source).exists(), source
      kept = (ROOT / '.dockerignore').read_text().splitlines()
      assert f'!{source.split("/")[0]}' in kept, f'{source} is not in the build context'
  extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
  found = [e for line in re.findall(r'extras=(\S+)', text) for e in line.split(',')]
  assert found and set(found) <= extras.keys()
  users = re.findall(r'^USER (.*)$', text, re.MULTILINE)
  assert users[-1] not in ('root', '0')
  assert '"/opt/lmjax/launch/worker.sh"' in text
  assert re.findall(r'^FROM (\S+)', text, re.MULTILINE) == ['python:${PYTHON}-slim']
