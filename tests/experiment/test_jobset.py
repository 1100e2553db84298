"""Manifests against the schema of the API, and what they run."""

import json
import pathlib
import re
import subprocess
import sys

import _fake
import _tiny
import jsonschema
import pytest
import yaml

from lmjax import main
from lmjax import tracking
from lmjax.experiment import declare
from lmjax.experiment import execute
from lmjax.experiment import jobset
from lmjax.experiment import local
from lmjax.experiment import measures
from lmjax.experiment import results
from lmjax.experiment import summary
from lmjax.experiment import trials

SCHEMA = json.loads((pathlib.Path(__file__).parent / 'jobset_v1alpha2.json').read_text('utf-8'))
NEEDED = dict(image='example.com/lmjax:1', claim='runs')
TPU = dict(tpu='tpu-v5-lite-podslice', topology='4x4')


def rendered(folder, e=None, **options) -> list[dict]:
  text = jobset.render(e or _tiny.experiment(), folder, 'cpu', NEEDED | options)
  found = list(yaml.safe_load_all(text))
  assert '&' not in text, 'aliases are hard to read'
  for doc in found:
    jsonschema.validate(doc, SCHEMA)
    longest = f'{doc["metadata"]["name"]}-{jobset.JOB}-0-999-abcde'
    assert len(longest) <= 63, 'a pod of it could not be named'
  return found


def job(doc: dict) -> dict:
  return doc['spec']['replicatedJobs'][0]['template']['spec']


def container(doc: dict) -> dict:
  return job(doc)['template']['spec']['containers'][0]


def of_first(folder, **options) -> dict:
  return rendered(folder, **options)[0]


@pytest.mark.parametrize(
  'options',
  [
    {},
    TPU,
    TPU | dict(topology='2x2x4', tpu='tpu-v5p-slice', chips='4'),
    dict(gpus='8', gpu='nvidia-h100-80gb', hosts='2'),
    dict(
      namespace='lm',
      service_account='trainer',
      queue='research',
      memory_gb='32',
      selectors='cloud.google.com/gke-spot=true,pool=a',
      max_restarts='3',
      grace='60',
      mount='/data',
      python='/opt/venv/bin/python',
    ),
  ],
  ids=['cores', 'slice', 'cube', 'gpus', 'all'],
)
def test_manifests_fit_the_schema(tmp_path, options):
  assert len(rendered(tmp_path, **options)) == 8  # 2 arms, 2 budgets, 2 rates


@pytest.mark.parametrize(
  'damage',
  [
    lambda d: d['spec'].update(failurePolicies={}),
    lambda d: d['spec']['failurePolicy'].update(restartStrategy='Blocking'),
    lambda d: job(d)['podFailurePolicy']['rules'][0]['onExitCodes'].update(values=['2']),
    lambda d: container(d).update(volumeMount=[]),
    lambda d: d['metadata']['labels'].update(arm='a b'),
  ],
  ids=['unknown', 'enum', 'type', 'deep', 'label'],
)
def test_the_schema_refuses_what_the_api_does(tmp_path, damage):
  doc = of_first(tmp_path)
  damage(doc)
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(doc, SCHEMA)


def test_a_pod_runs_the_command_of_its_trial(tmp_path):
  e = _tiny.experiment()
  for t, doc in zip(trials.tuning(e, 'cpu'), rendered(tmp_path), strict=True):
    words = t.words(execute.folder('/lmjax/runs', t) / 'run')
    assert container(doc)['command'] == ['python', '-m', 'lmjax.main', *words]
    assert doc['metadata']['name'] == f'lmjax-{t.identity}-{t.code[:8]}'
    assert doc['metadata']['annotations'] == {'lmjax/trial': t.name}
    assert job(doc)['completions'] == job(doc)['parallelism'] == 1
    mount = container(doc)['volumeMounts'][0]
    volume = job(doc)['template']['spec']['volumes'][0]
    assert mount == {'name': volume['name'], 'mountPath': '/lmjax'}
    assert volume['persistentVolumeClaim'] == {'claimName': 'runs'}


def test_hosts_of_a_slice_find_each_other(tmp_path):
  doc = of_first(tmp_path, **TPU)
  assert job(doc)['completions'] == job(doc)['parallelism'] == 4
  assert job(doc)['completionMode'] == 'Indexed'
  name = doc['metadata']['name']
  words = container(doc)['command']
  assert words[-3:] == [
    f'--coordinator={name}-run-0-0.{name}:8476',
    '--processes=4',
    '--process=$(JOB_COMPLETION_INDEX)',
  ]
  # As Kubernetes gives them to host 3, they are flags of the command.
  given = [w.replace('$(JOB_COMPLETION_INDEX)', '3') for w in words[3:]]
  _, flags, overrides = main.parse(given)
  assert (flags.processes, flags.process) == (4, 3)
  assert dict(overrides)['steps'] == '10'
  pod = job(doc)['template']['spec']
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '4x4',
  }
  assert container(doc)['resources']['limits'] == {'google.com/tpu': 4}
  assert [t['key'] for t in pod['tolerations']] == ['google.com/tpu']


def test_gpus_come_from_the_scale_or_the_options(tmp_path):
  e = _tiny.experiment(scales={'cpu': declare.Scale((10,), cores=6, gpus=2)})
  resources = container(rendered(tmp_path, e)[0])['resources']
  assert resources == {
    'requests': {'cpu': 6, 'nvidia.com/gpu': 2},
    'limits': {'nvidia.com/gpu': 2},
  }
  doc = rendered(tmp_path, e, gpus=8)[0]
  assert container(doc)['resources']['limits'] == {'nvidia.com/gpu': 8}
  doc = rendered(tmp_path, e, **TPU)[0]
  assert container(doc)['resources']['limits'] == {'google.com/tpu': 4}


def outcome(doc: dict, status: int) -> str:
  """What Kubernetes and JobSet make of a pod's status, by their documented rules: the first rule of
  the job that fits; a counted failure beyond backoffLimit fails the job; then the JobSet's rules,
  and a restart where none fits.
  """
  reason = 'BackoffLimitExceeded'
  assert job(doc)['backoffLimit'] == 0
  assert job(doc)['template']['spec']['restartPolicy'] == 'Never'
  for rule in job(doc)['podFailurePolicy']['rules']:
    codes = rule['onExitCodes']
    assert codes['containerName'] == container(doc)['name'] and codes['operator'] == 'In'
    assert codes['values'] == sorted(set(codes['values'])) and 0 not in codes['values']
    if status in codes['values']:
      reason = {'FailJob': 'PodFailurePolicy', 'Count': reason}[rule['action']]
      break
  for rule in doc['spec']['failurePolicy']['rules']:
    if reason in rule['onJobFailureReasons']:
      return rule['action']
  return 'RestartJobSet'


@pytest.mark.parametrize(
  'status,expected',
  [
    (75, 'RestartJobSet'),
    (137, 'RestartJobSet'),  # SIGKILL
    (2, 'FailJobSet'),
    (65, 'FailJobSet'),
    (74, 'FailJobSet'),
  ],
)
@pytest.mark.parametrize('options', [{}, TPU], ids=['one host', 'four'])
def test_statuses_restart_or_fail(tmp_path, options, status, expected):
  assert outcome(of_first(tmp_path, **options), status) == expected


def test_a_bug_ends_a_single_host_and_is_doubted_of_several(tmp_path):
  assert outcome(of_first(tmp_path), 1) == 'FailJobSet'
  assert outcome(of_first(tmp_path, **TPU), 1) == 'RestartJobSet'


def test_restarts_are_limited_and_never_meet(tmp_path):
  policy = of_first(tmp_path, max_restarts='7', grace='33')['spec']['failurePolicy']
  assert policy['maxRestarts'] == 7 and policy['restartStrategy'] == 'BlockingRecreate'
  pod = job(of_first(tmp_path, grace='33'))['template']['spec']
  assert pod['terminationGracePeriodSeconds'] == 33


def test_options_reach_their_places(tmp_path):
  doc = of_first(
    tmp_path,
    namespace='lm',
    service_account='trainer',
    queue='research',
    memory_gb='32',
    selectors='cloud.google.com/gke-spot=true',
    mount='/data',
    python='py',
  )
  pod = job(doc)['template']['spec']
  assert doc['metadata']['namespace'] == 'lm'
  assert doc['metadata']['labels']['kueue.x-k8s.io/queue-name'] == 'research'
  assert pod['serviceAccountName'] == 'trainer'
  assert pod['nodeSelector'] == {'cloud.google.com/gke-spot': 'true'}
  assert container(doc)['image'] == NEEDED['image']
  assert container(doc)['command'][0] == 'py'
  assert container(doc)['command'][4].startswith('--workdir=/data/runs/quickstart-')
  assert container(doc)['resources']['limits'] == {'memory': '32Gi'}


def test_dollars_in_words_stay_what_they_are(tmp_path):
  e = _tiny.experiment(changes=_tiny.CHANGES | {'data.valid': 'jsonl(path="/x/$(HOME).jsonl")'})
  words = container(rendered(tmp_path, e)[0])['command']
  assert '--config.data.valid=jsonl(path="/x/$$(HOME).jsonl")' in words


def test_only_what_is_missing_is_rendered(tmp_path):
  e, found = _tiny.experiment(), {'scales': {}}
  tuning = trials.tuning(e, 'cpu')
  one = lambda t: dict(value=t.point['peak_lr'], loss=t.point['peak_lr'])
  give = lambda t: results.record(t, e.measured, _fake.record(t, **one(t)))
  results.merge(found, 'cpu', [give(t) for t in tuning[1:]])
  results.write(tmp_path, found)
  names = [d['metadata']['annotations']['lmjax/trial'] for d in rendered(tmp_path)]
  # The first trial, and the seeds of the arms and budgets that are tuned: all but its own.
  assert names[0] == tuning[0].name and len(names) == 1 + 3 * 2
  assert all(re.search(r'seed [12], peak_lr=0.001$', n) for n in names[1:])
  results.merge(found, 'cpu', [give(tuning[0])])
  known = results.known(found, 'cpu', e.measured)
  results.merge(found, 'cpu', [give(t) for t in summary.everything(e, 'cpu', known)])
  results.write(tmp_path, found)
  assert jobset.render(e, tmp_path, 'cpu', NEEDED) == ''


@pytest.mark.slow
def test_what_a_pod_did_is_collected_not_repeated(tmp_path, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', _tiny.ONE_DEVICE)
  doc = of_first(tmp_path, mount=str(tmp_path), python=sys.executable)
  pod = subprocess.run(container(doc)['command'], capture_output=True, text=True)
  assert pod.returncode == 0, pod.stderr
  t, runs = trials.tuning(_tiny.experiment(), 'cpu')[0], tmp_path / 'runs'
  metrics = execute.folder(runs, t) / 'run' / 'metrics.jsonl'
  before = metrics.read_text()
  ((_, record),) = local.Local(1).run([t], runs, measures.final_loss)
  assert record['status'] == execute.DONE and record['attempts'] == 1
  assert [x['step'] for x in tracking.read_metrics(metrics.parent) if x['kind'] == 'train'] == [
    *range(1, 11)
  ]
  assert metrics.read_text().startswith(before)
  assert not any('"kind": "train"' in x for x in metrics.read_text()[len(before) :].splitlines())


@pytest.mark.parametrize(
  'options,text',
  [
    (dict(image=''), 'render: --option=image=NAME is needed'),
    (dict(claim=''), 'render: --option=claim=NAME is needed'),
    (dict(images='x'), "render: option 'images': image, claim, mount"),
    (dict(hosts='two'), "render: hosts='two': a whole number is expected"),
    (dict(hosts='0'), 'render: hosts=0: at least one'),
    (dict(tpu='tpu-v6e-slice'), 'render: tpu= and topology= are expected together'),
    (TPU | dict(topology='4*4'), "render: topology='4*4': chips by chips are expected"),
    (TPU | dict(chips='3'), "render: topology='4x4' has 16 chips, which chips=3 does not divide"),
    (TPU | dict(gpus='1'), "render: tpu='tpu-v5-lite-podslice' and gpus=1: one of them"),
    (TPU | dict(hosts='2'), 'render: hosts= of a slice follow'),
    (dict(selectors='spot'), "render: selectors='spot': LABEL=VALUE,... are expected"),
    (dict(mount='runs'), "render: mount='runs': an absolute path is expected"),
    (dict(runs='/elsewhere'), "render: option 'runs': "),
  ],
)
def test_options_are_refused_by_name(tmp_path, options, text):
  with pytest.raises(declare.ExperimentError) as e:
    jobset.render(_tiny.experiment(), tmp_path, 'cpu', NEEDED | options)
  assert str(e.value).startswith(text)


def test_run_directories_are_below_the_mount(tmp_path):
  with pytest.raises(declare.ExperimentError, match="--runs=/elsewhere: .* mount='/lmjax'"):
    jobset.render(_tiny.experiment(), tmp_path, 'cpu', NEEDED, '/elsewhere')
