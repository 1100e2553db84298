"""Stand-ins for the tools that the scripts of `launch/` call: each checks its arguments against
what the real one accepts by its documentation, and notes them.

gcloud: https://cloud.google.com/sdk/gcloud/reference/compute/tpus (tpu-vm and queued-resources:
  create, ssh, delete, describe), release track GA.
xpk: https://github.com/AI-Hypercomputer/xpk, src/xpk/parser/workload.py and common.py.
kubectl: https://kubernetes.io/docs/reference/kubectl/generated (apply, get, logs, delete).
sbatch, scontrol: https://slurm.schedmd.com/sbatch.html, https://slurm.schedmd.com/scontrol.html.
docker: https://docs.docker.com/reference/cli/docker/container (run, logs, stop).
"""

import json
import os
import pathlib
import stat
import sys

WIDE = 'project quiet format verbosity account'  # gcloud's own
CREATE = (
  'zone accelerator-type topology type async boot-disk data-disk description internal-ips labels '
  'metadata metadata-from-file network range reserved scopes service-account shielded-secure-boot '
  'spot subnetwork tags'
)
SSH = (
  'dry-run force-key-file-overwrite internal-ip plain ssh-flag ssh-key-file '
  'strict-host-key-checking worker zone command output-directory ssh-key-expiration '
  'ssh-key-expire-after'
)
XPK = 'project zone dry-run skip-validation quiet cluster workload '
# command -> (flags, flags that must be there, number of words that are no flags)
ACCEPTED = {
  'gcloud compute tpus tpu-vm create': (
    f'{WIDE} {CREATE} version preemptible queue-count',
    'zone version',
    1,
  ),
  'gcloud compute tpus tpu-vm ssh': (f'{WIDE} {SSH}', 'command', 1),
  'gcloud compute tpus tpu-vm delete': (f'{WIDE} zone async', 'zone', 1),
  'gcloud compute tpus queued-resources create': (
    f'{WIDE} {CREATE} runtime-version node-id node-count node-prefix guaranteed '
    'valid-after-duration valid-after-time valid-until-duration valid-until-time',
    'zone runtime-version accelerator-type node-id',
    1,
  ),
  'gcloud compute tpus queued-resources ssh': (
    f'{WIDE} {SSH} batch-size node tunnel-through-iap',
    'command',
    1,
  ),
  'gcloud compute tpus queued-resources delete': (f'{WIDE} zone async force', 'zone', 1),
  'gcloud compute tpus queued-resources describe': (f'{WIDE} zone', 'zone', 1),
  'xpk workload create': (
    XPK + 'command tpu-type device-type num-nodes scheduler debug-dump-gcs spot on-demand '
    'reservation docker-name docker-image num-slices priority max-restarts '
    'ttl-seconds-after-finished termination-grace-period-seconds enable-debug-logs '
    'restart-on-exit-codes env env-file',
    'command tpu-type cluster workload',
    0,
  ),
  'xpk workload list': (XPK + 'filter-by-status filter-by-job timeout', 'cluster', 0),
  'xpk workload delete': (
    XPK + 'filter-by-status filter-by-job force',
    'cluster workload',
    0,
  ),
  'kubectl apply': ('namespace filename dry-run server-side', 'filename', 0),
  'kubectl get': ('namespace output selector watch', '', 2),
  'kubectl logs': ('namespace selector tail prefix follow container', '', 0),
  'kubectl delete': ('namespace wait', '', 2),
  'docker run': (
    'detach name gpus ipc env user volume privileged net shm-size rm',
    'name',
    None,
  ),
  'docker logs': ('tail follow', '', 1),
  'docker stop': ('time', '', 1),
  'docker pull': ('quiet', '', 1),
  'sbatch': (
    'job-name nodes ntasks-per-node gpus-per-node cpus-per-task time partition account qos output '
    'export signal requeue open-mode mem exclusive',
    'job-name nodes time',
    None,
  ),
  'scontrol requeue': ('', '', 1),
}
NO_VALUE = set(
  'spot reserved quiet force async prefix detach privileged preemptible requeue rm follow watch '
  'on-demand'.split()
)
SHORT = {'-t': 'time', '-q': 'quiet', '-d': 'detach', '-e': 'env', '-f': 'force'}
HERE = pathlib.Path(__file__).resolve()


def check(words: list[str]) -> dict:
  """What a call means. Raises ValueError where the real tool would refuse it."""
  name = max((c for c in ACCEPTED if words[: len(c.split())] == c.split()), key=len, default=None)
  if name is None:
    raise ValueError(f'unknown command: {words[:5]}')
  known, needed, count = ACCEPTED[name]
  flags, rest, words = {}, [], words[len(name.split()) :]
  while words:
    word, *words = words
    if word.startswith('-') and not (rest and count is None):  # behind an image or script: its own
      key, equals, value = SHORT.get(word, word.removeprefix('--')).partition('=')
      if word in SHORT and key not in NO_VALUE:
        value, *words = words
        equals = '='
      if key not in known.split():
        raise ValueError(f'{name}: unknown flag {word}')
      if bool(equals) == (key in NO_VALUE):
        raise ValueError(f'{name}: {word}: a value is {"not " * bool(equals)}expected')
      flags[key] = value
    else:
      rest.append(word)
  if lacking := set(needed.split()) - set(flags):
    raise ValueError(f'{name}: lacks {lacking}')
  if count is not None and len(rest) != count:
    raise ValueError(f'{name}: {count} words are expected, not {rest}')
  return {'command': name, 'flags': flags, 'rest': rest}


def install(folder: pathlib.Path) -> dict[str, str]:
  """Puts the tools into a folder; the environment in which they are found."""
  for name in {c.split()[0] for c in ACCEPTED}:
    tool = folder / name
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE} {name} "$@"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
  log = folder / 'log.jsonl'
  log.touch()
  path = f'{folder}{os.pathsep}{os.environ["PATH"]}'
  return {**os.environ, 'PATH': path, 'TOOLS_LOG': str(log)}


def calls(env: dict[str, str]) -> list[dict]:
  return [json.loads(x) for x in pathlib.Path(env['TOOLS_LOG']).read_text().splitlines()]


def main(words: list[str]) -> int:
  try:
    call = check(words)
  except ValueError as e:
    print(f'tools: {e}', file=sys.stderr)
    return 64
  if call['command'] == 'kubectl apply':
    call['input'] = sys.stdin.read()
  with open(os.environ['TOOLS_LOG'], 'a', encoding='utf-8') as f:
    f.write(json.dumps(call) + '\n')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
