"""Kubernetes manifests of an experiment's trials: a JobSet each, for TPU slices, GPUs or cores.

  python -m lmjax.experiment render experiments/optimizers --scale=tpu --option=image=IMAGE \
    --option=claim=runs --option=tpu=tpu-v5-lite-podslice --option=topology=4x4 | kubectl apply -f -

Nothing is run here. Rendered is what has no result yet: first the tuning, and, once `results.json`
has that, the seeds. What the pods gave is collected by `run` with the same `--scale` and with
`--runs` naming the claim's folder where the command runs: a finished run is read, not repeated, at
the cost of one start; only what a trial cost (seconds, attempts) is unknown then.

Shared: a volume claim that many nodes may write, mounted at `mount`, which holds `runs`. The image
holds lmjax, as it is here, and the recipes; data come with it or lie on the claim.

Preemption: a pod that is told to end saves and leaves with status 75. Then all hosts of its slice
start again together, once the old pods are gone, and go on from the checkpoint; so they do after
any other death, in all at most `max_restarts` times. Statuses that need a person (2, 65, 74, and 1
of a single host) end the JobSet as failed at once.

JobSet 0.7 or later (`BlockingRecreate`), Kubernetes 1.31 or later (pod failure policies). With
`queue` the JobSets wait in a queue of Kueue, which is what limits how many run at a time.
"""

import dataclasses
import math
import pathlib
import re
from typing import Any

import yaml

from lmjax import exits
from lmjax.experiment import checks
from lmjax.experiment import declare
from lmjax.experiment import execute
from lmjax.experiment import results as results_lib
from lmjax.experiment import runner
from lmjax.experiment import summary
from lmjax.experiment.declare import ExperimentError
from lmjax.experiment.trials import Trial

PORT = 8476  # of the coordinator
JOB = 'run'
NAME = 'lmjax'
TPU, GPU = 'google.com/tpu', 'nvidia.com/gpu'
ON_A_HOST = 4  # TPU chips, unless said otherwise
NUMBERS = ('chips', 'gpus', 'hosts', 'memory_gb', 'max_restarts', 'grace')


@dataclasses.dataclass(frozen=True)
class Pods:
  """Where and how the pods of a trial run.

  image: holds lmjax. claim: the volume claim. mount: where pods see it. python: in the image.
  tpu, topology: a slice, as in tpu-v6e-slice and 4x4. chips: of one host of it.
  gpus: of one host; by default the scale's. gpu: of a GPU node, as in nvidia-h100-80gb.
  hosts: of a trial on GPUs or cores; a slice has its own number.
  memory_gb: of a pod. selectors: of nodes, as in 'cloud.google.com/gke-spot=true'.
  grace: seconds that a pod has to save. max_restarts: see above.
  """

  image: str = ''
  claim: str = ''
  mount: str = '/lmjax'
  python: str = 'python'
  namespace: str = ''
  service_account: str = ''
  queue: str = ''
  tpu: str = ''
  topology: str = ''
  chips: int = 0
  gpus: int = 0
  gpu: str = ''
  hosts: int = 1
  memory_gb: int = 0
  selectors: str = ''
  grace: int = 300
  max_restarts: int = 100


def render(
  e: declare.Experiment, folder: Any, scale: str, options: dict[str, Any], runs: str = ''
) -> str:
  """Manifests as YAML, one document a trial; '' where nothing is left to run.

  Args:
    folder: of the experiment, with its results so far.
    options: of `Pods`; texts are parsed.
    runs: where the pods make run directories; by default `runs` on the claim.

  Raises ExperimentError for options that are unknown or do not fit.
  """
  checks.scale_of(e, scale)
  pods = parse(options)
  at = pathlib.PurePosixPath(runs or f'{pods.mount}/runs')
  if not at.is_relative_to(pods.mount):
    raise ExperimentError(f'--runs={runs}: a folder below mount={pods.mount!r} is expected')
  known = results_lib.known(results_lib.read(folder), scale, e.measured)
  todo = runner.unfinished(summary.everything(e, scale, known), known)
  slug = pathlib.Path(folder).resolve().name
  found = [manifest(t, slug, scale, str(at), pods) for t in todo]
  return yaml.safe_dump_all(found, sort_keys=False, width=100) if found else ''


def parse(options: dict[str, Any]) -> Pods:
  """Pods from options of the command line, checked."""
  fields = {f.name: f for f in dataclasses.fields(Pods)}
  for name, value in options.items():
    if name not in fields:
      raise ExperimentError(f'render: option {name!r}: {", ".join(fields)} are known')
    if name in NUMBERS and not re.fullmatch(r'\d+', str(value)):
      raise ExperimentError(f'render: {name}={value!r}: a whole number is expected')
  pods = Pods(**{k: int(v) if k in NUMBERS else str(v) for k, v in options.items()})
  for name, what in dict(image='a container image with lmjax', claim='a volume claim').items():
    if not getattr(pods, name):
      raise ExperimentError(f'render: --option={name}=NAME is needed: {what}')
  if not pods.mount.startswith('/'):
    raise ExperimentError(f'render: mount={pods.mount!r}: an absolute path is expected')
  if bool(pods.tpu) != bool(pods.topology):
    raise ExperimentError('render: tpu= and topology= are expected together, or neither')
  if pods.tpu and pods.gpus:
    raise ExperimentError(f'render: tpu={pods.tpu!r} and gpus={pods.gpus}: one of them is expected')
  if pods.tpu and pods.hosts != 1:
    raise ExperimentError('render: hosts= of a slice follow from topology= and chips=')
  if pods.topology and not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)+', pods.topology):
    raise ExperimentError(f'render: topology={pods.topology!r}: chips by chips are expected, 4x4')
  if not pods.hosts:
    raise ExperimentError('render: hosts=0: at least one is expected')
  selectors(pods)
  size(pods)
  return pods


def size(pods: Pods) -> tuple[int, int]:
  """(hosts of a trial, TPU chips of each)."""
  if not pods.tpu:
    return pods.hosts, 0
  all_of = math.prod(int(n) for n in pods.topology.split('x'))
  chips = pods.chips or min(all_of, ON_A_HOST)
  if all_of % chips:
    raise ExperimentError(
      f'render: topology={pods.topology!r} has {all_of} chips, which chips={chips} does not divide'
    )
  return all_of // chips, chips


def selectors(pods: Pods) -> dict[str, str]:
  """Labels of the nodes that a pod may run on."""
  out = {}
  if pods.tpu:
    out['cloud.google.com/gke-tpu-accelerator'] = pods.tpu
    out['cloud.google.com/gke-tpu-topology'] = pods.topology
  if pods.gpu:
    out['cloud.google.com/gke-accelerator'] = pods.gpu
  for part in filter(None, pods.selectors.split(',')):
    key, equals, value = part.partition('=')
    if not key or not equals:
      raise ExperimentError(f'render: selectors={pods.selectors!r}: LABEL=VALUE,... are expected')
    out[key] = value
  return out


def name_of(trial: Trial) -> str:
  """Unique as its run directory is, and short: pods' names, which end in more, have 63 letters."""
  return f'{NAME}-{trial.identity}-{trial.code[:8]}'


def command(trial: Trial, runs: str, pods: Pods) -> list[str]:
  """`lmjax.main` with the trial's words; each host of several says which one it is."""
  # Kubernetes puts variables in the place of $(NAME), and reads $$ as $.
  words = [w.replace('$(', '$$(') for w in trial.words(execute.folder(runs, trial) / 'run')]
  out = [pods.python, '-m', 'lmjax.main', *words]
  hosts, _ = size(pods)
  if hosts > 1:
    first = f'{name_of(trial)}-{JOB}-0-0.{name_of(trial)}:{PORT}'
    out += [f'--coordinator={first}', f'--processes={hosts}', '--process=$(JOB_COMPLETION_INDEX)']
  return out


def manifest(trial: Trial, slug: str, scale: str, runs: str, pods: Pods) -> dict[str, Any]:
  """One trial's JobSet. Raises ExperimentError for one that begins from another run, for which
  nothing would wait.
  """
  if trial.before is not None:
    raise ExperimentError(
      f'render: {trial.name} begins from another run (before=), and JobSets do not wait for each '
      'other; --engine=ray or --engine=slurm runs such arms'
    )
  hosts, _ = size(pods)
  person = [exits.USER, exits.BROKEN, exits.DISK]
  if hosts == 1:
    person.insert(0, 1)  # a bug; of several hosts it may be what another one's death caused
  exit_codes = lambda values: dict(containerName=NAME, operator='In', values=values)
  job = dict(
    completionMode='Indexed',
    completions=hosts,
    parallelism=hosts,
    backoffLimit=0,  # one pod less and all must start again, which the JobSet does
    podFailurePolicy=dict(
      rules=[
        dict(action='FailJob', onExitCodes=exit_codes(person)),
        dict(action='Count', onExitCodes=exit_codes([exits.RETRY])),
      ]
    ),
    template=dict(
      metadata=dict(labels=_labels(trial, slug, scale), annotations={'lmjax/trial': trial.name}),
      spec=_pod(trial, runs, pods),
    ),
  )
  labels = _labels(trial, slug, scale)
  if pods.queue:
    labels['kueue.x-k8s.io/queue-name'] = pods.queue
  about = dict(name=name_of(trial), labels=labels, annotations={'lmjax/trial': trial.name})
  if pods.namespace:
    about['namespace'] = pods.namespace
  needs_a_person = dict(
    name='needsAPerson', action='FailJobSet', onJobFailureReasons=['PodFailurePolicy']
  )
  return dict(
    apiVersion='jobset.x-k8s.io/v1alpha2',
    kind='JobSet',
    metadata=about,
    spec=dict(
      failurePolicy=dict(
        maxRestarts=pods.max_restarts,
        restartStrategy='BlockingRecreate',  # two attempts must not meet in one run directory
        rules=[needs_a_person],
      ),
      network=dict(enableDNSHostnames=True, publishNotReadyAddresses=True),
      replicatedJobs=[dict(name=JOB, replicas=1, template=dict(spec=job))],
    ),
  )


def _pod(trial: Trial, runs: str, pods: Pods) -> dict[str, Any]:
  """The spec of one host's pod."""
  _, chips = size(pods)
  gpus = 0 if pods.tpu else pods.gpus or trial.gpus
  limits: dict[str, Any] = {k: n for k, n in ((TPU, chips), (GPU, gpus)) if n}
  asked: dict[str, Any] = dict(cpu=trial.cores)
  if pods.memory_gb:
    asked['memory'] = limits['memory'] = f'{pods.memory_gb}Gi'
  container = dict(
    name=NAME,
    image=pods.image,
    command=command(trial, runs, pods),
    resources=dict(requests=asked | limits, limits=limits),
    volumeMounts=[dict(name='runs', mountPath=pods.mount)],
  )
  spec: dict[str, Any] = dict(
    restartPolicy='Never',  # of the pod; the failure policy asks for it
    terminationGracePeriodSeconds=pods.grace,
    containers=[container],
    volumes=[dict(name='runs', persistentVolumeClaim=dict(claimName=pods.claim))],
  )
  if pods.service_account:
    spec['serviceAccountName'] = pods.service_account
  if found := selectors(pods):
    spec['nodeSelector'] = found
  if taints := [k for k in (TPU, GPU) if k in limits]:
    spec['tolerations'] = [dict(key=k, operator='Exists', effect='NoSchedule') for k in taints]
  return spec


def _labels(trial: Trial, slug: str, scale: str) -> dict[str, str]:
  """What `kubectl get jobset -l lmjax/experiment=...` selects by."""
  raw = dict(experiment=slug, scale=scale, arm=trial.arm, steps=trial.steps, seed=trial.seed)
  out = {f'lmjax/{k}': _label(f'{v}') for k, v in raw.items()}
  return {'app.kubernetes.io/name': NAME, **out}


def _label(text: str) -> str:
  """Letters, digits and -_. in the middle, 63 at most."""
  return re.sub(r'[^A-Za-z0-9_.-]', '-', text)[:63].strip('-_.')
