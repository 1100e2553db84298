import dataclasses
import json
import math
import shlex
import subprocess

import pytest

from lmjax import build
from lmjax import config
from lmjax import exits
from lmjax import main as main_lib
from lmjax.kernels import attention as kernels
from lmjax.planning import compile as compile_lib
from lmjax.planning import planned
from lmjax.planning import search
from lmjax.planning import topologies

SMALL = [
  '--config=quickstart',
  '--config.model.depth=2',
  '--config.model.unroll=1',
  '--config.model.width=64',
  '--config.data.length=32',
  '--config.batch_tokens=512',
]
LARGE = ['--config=llama:8B', '--config.batch_tokens=1048576', '--config.micro_batches=1']


def plan(capsys, *words):
  """(exit status, what it printed, what it said went wrong)."""
  try:
    status = main_lib.main([*words])
  except SystemExit as e:
    status = e.code
  out = capsys.readouterr()
  return status, out.out, out.err


def test_a_plan_for_gpus_says_everything_and_that_it_is_estimated(capsys, tmp_path):
  file = tmp_path / 'plan.json'
  status, text, _ = plan(
    capsys, *SMALL, '--plan', '--topology=h100:8x2', '--config.mesh.data=16', f'--plan_json={file}'
  )
  assert status == 0
  for word in (
    'h100:8x2: 16 chips on 2 hosts; mesh data 16',
    'estimated from the trace',
    'parameters',
    'optimizer state',
    'peak',
    'for programs, of 79.6',
    'the step fits',
    'FLOPs to make it again',
    'all-gather',
    'reduce-scatter',
    'network over data',
    'bound by',
    'tokens/s',
    'MFU',
    'chip-hours',
  ):
    assert word in text, word
  found = json.loads(file.read_text())['plan']
  assert found['chips'] == 16 and found['fits'] and found['source'] == 'estimated'
  step = found['step']
  assert step['optimistic'] <= step['expected'] <= 1.001 * step['pessimistic']
  assert found['tokens_per_second'] == pytest.approx(512 / step['expected'])
  assert found['peak'] == pytest.approx(sum(found['state'].values()) + found['temporaries'])
  made = build.build(config.resolve(config.load('quickstart', overrides())))
  n = build.counts(made)['total']
  # Norms and what else does not divide is whole on each chip.
  assert 4 * n / 16 <= found['state']['parameters'] <= 1.05 * 4 * n / 16
  assert 8 * n / 16 <= found['state']['optimizer'] <= 1.05 * 8 * n / 16


def overrides():
  return [tuple(w.removeprefix('--config.').split('=', 1)) for w in SMALL[1:]]


@pytest.mark.parametrize(
  'words, says',
  [
    (['--plan', '--topology=v5e-12'], '1x1, 2x2, 2x4'),
    (['--plan', '--topology=v9:2x2'], 'There are v4, v5e'),
    (['--plan', '--topology=v5litpod-8'], "did you mean 'v5litepod'"),
    (['--plan', '--topology='], '--topology= is empty'),
    (['--plan', '--topology=h100:4', '--config.mesh.data=3'], 'config.mesh.data=4'),
    (['--plan', '--topology=h100:4'], 'config.mesh asks for one device'),
    (['--plan', '--topology=h100:8x3', '--config.mesh.data=-1'], 'do not divide over 24'),
    (['--topology=v5e-4'], 'belongs to --plan'),
    (['--plan=search'], '--topology=NAME'),
    (['--plan=all', '--topology=v5e-4'], 'search'),
    (['--plan_json=x', '--plan'], '--topology=NAME'),
    (['--plan', '--topology=v5e-4', '--plan_seconds=inf'], '--plan_seconds=inf: 1 to'),
    (['--plan', '--topology=v5e-4', '--plan_seconds=nan'], '--plan_seconds=nan: 1 to'),
    (['--process=3'], '--process=3 needs --coordinator=HOST:PORT'),
  ],
)
def test_refusals_are_one_sentence(capsys, words, says):
  status, _, err = plan(capsys, *SMALL, *words)
  assert status == exits.USER and says in err
  assert err.strip().splitlines()[-1].startswith(('lmjax: ', 'python -m lmjax.main: error'))


@pytest.mark.slow
def test_what_does_not_fit_says_by_how_much_and_what_would(capsys):
  status, text, err = plan(
    capsys, *LARGE, '--plan', '--topology=h100:8', '--config.mesh.data=8', '--plan_seconds=4'
  )
  assert status == exits.USER and 'does not fit' in text
  assert 'too little' in err and '--config.micro_batches=' in err or 'more chips' in err


def test_without_libtpu_the_estimate_is_printed_and_the_extra_named(capsys, monkeypatch):
  monkeypatch.setattr(compile_lib, 'available', lambda: False)
  status, text, err = plan(capsys, *SMALL, '--plan', '--topology=v5e-4', '--config.mesh.data=4')
  assert status == exits.USER and 'estimated from the trace' in text and 'chip-hours' in text
  assert "pip install 'lmjax[tpu]'" in err


@pytest.mark.parametrize('libtpu', [True, False])
def test_what_is_known_is_written_where_compiling_takes_too_long(
  capsys, monkeypatch, tmp_path, libtpu
):
  """The estimate as JSON with the reason, and the status of what did not work."""

  def slow(*words, timeout, **_):
    raise subprocess.TimeoutExpired(words, timeout)

  monkeypatch.setattr(compile_lib, 'available', lambda: libtpu)
  monkeypatch.setattr(compile_lib.subprocess, 'run', slow)
  words = [*SMALL, '--plan', '--topology=v5e-4', '--config.mesh.data=4', '--plan_seconds=7']
  file = tmp_path / 'plan.json'
  status, text, err = plan(capsys, *words, f'--plan_json={file}')
  assert status == exits.USER and 'estimated from the trace' in text
  found = json.loads(file.read_text())
  assert found['plan']['source'] == 'estimated' and found['plan']['chips'] == 4
  says = 'was not done within 7 s (--plan_seconds)' if libtpu else "pip install 'lmjax[tpu]'"
  assert says in found['reason'] and says in err
  if libtpu:
    assert 'what is printed and written is the estimate' in err
  status, _, err = plan(capsys, *words, f'--plan_json={tmp_path}/none/plan.json')
  assert status == exits.DISK and f'{tmp_path}/none/plan.json' in err


@pytest.mark.slow
def test_what_the_compiler_refuses_is_not_recommended(capsys, monkeypatch, tmp_path):
  """The estimate is printed all the same, and the search takes what was not refused."""

  def refused(*_):
    raise ValueError('the compiler refused the step: INTERNAL')

  monkeypatch.setattr(compile_lib, 'available', lambda: True)
  monkeypatch.setattr(planned, 'compiled', refused)
  flags = ['--topology=v5e-4', '--config.mesh.data=4', '--plan_seconds=120']
  status, text, err = plan(capsys, *SMALL, '--plan', *flags)
  assert status == exits.USER and 'refused the step' in err and 'estimated from the trace' in text
  file = tmp_path / 'plan.json'
  status, text, _ = plan(capsys, *SMALL, '--plan=search', flags[0], flags[2], f'--plan_json={file}')
  assert status == 0 and 'none of the best 3 will do: the compiler refused the step' in text
  rows = [x for x in text.splitlines() if 'mesh.' in x and ' s ' in x]
  best = next(x for x in text.splitlines() if x.startswith('best')).replace('--config.', '')
  assert not any(x.split('mesh.')[1].strip() in best for x in rows if 'failed' in x)
  assert 'none of the best 3 will do' in json.loads(file.read_text())['reason']


@pytest.mark.slow
def test_search_ranks_what_fits_and_its_flags_can_be_pasted(capsys, tmp_path):
  file = tmp_path / 'plan.json'
  status, text, _ = plan(
    capsys,
    *SMALL,
    '--plan=search',
    '--topology=h100:4',
    '--plan_seconds=120',
    f'--plan_json={file}',
  )
  assert status == 0 and 'best, estimated: --config.mesh.' in text
  line = next(x for x in text.splitlines() if x.startswith('best'))
  flags = shlex.split(line.partition(': ')[2])
  steps = [p['step']['expected'] for p in json.loads(file.read_text())['plans']]
  assert steps == sorted(steps) and len(steps) > 3
  status, again, _ = plan(capsys, *SMALL, '--plan', '--topology=h100:4', *flags)
  assert status == 0
  rate = lambda text: next(x for x in text.splitlines() if x.startswith('tokens/s'))
  assert rate(again) == rate(text)


def test_meshes_use_all_chips_and_only_what_the_model_has():
  made = build.build(config.resolve(config.load('quickstart', overrides())))
  for name, chips in (('v5e-8', 8), ('h100:8x2', 16), ('2*v5e-4', 8)):
    where, found = topologies.parse(name), []
    for sizes in search.meshes(made, where):
      assert (
        math.prod(sizes.values()) == chips and min(sizes.values()) > 1 and 'expert' not in sizes
      )
      assert ('replica' in sizes) == (where.slices > 1)
      found.append(tuple(sizes.items()))
    assert len(found) == len(set(found)) > 1, name


def test_flags_to_paste_undo_what_the_config_says():
  """Behind a config with another mesh they give this one, through a shell."""
  given = [('mesh.data', '2'), ('mesh.tensor', '2'), ('mesh.mode', 'explicit')]
  made = build.build(config.resolve(config.load('quickstart', [*overrides(), *given])))
  where = topologies.parse('h100:4')
  found = search.Search(made, where, 60).try_({'data': 4}, 'names(qkv)')
  pasted = [w.removeprefix('--config.').partition('=') for w in shlex.split(found.flags())]
  again = config.resolve(
    config.load('quickstart', [*overrides(), *given, *((k, v) for k, _, v in pasted)])
  )
  assert again['mesh'] == found.run.config['mesh'] and again['mesh']['tensor'] == 1
  assert again['model']['remat'] == 'names(qkv)' and '(qkv)' in found.flags()
  cut = search.changed(made, {'stage': 2, 'data': 2})
  assert cut == {'mesh.data': 2, 'mesh.tensor': 1, 'mesh.stage': 2, 'mesh.mode': 'auto'}


def test_a_plan_for_gpus_is_the_same_where_a_gpu_is(monkeypatch):
  """cuDNN's attention cannot be traced without one, nor can its FLOPs be seen."""
  made = build.build(config.resolve(config.load('quickstart', overrides())))
  cut = config.load('quickstart', [*overrides(), ('mesh.data', '4'), ('mesh.sequence', '2')])
  cut = build.build(config.resolve(cut))
  able = dict(cudnn=kernels.Implementation(None))  # its refusals are gone
  monkeypatch.setattr(kernels, 'IMPLEMENTATIONS', kernels.IMPLEMENTATIONS | able)
  where = topologies.parse('h100:1')
  assert planned.estimated(made, where).flops > 0
  assert planned.estimated(cut, topologies.parse('h100:8')).flops > 0  # knows only one attention
  forced = made.config | {'kernels': made.config['kernels'] | {'attention': 'cudnn'}}
  with pytest.raises(TypeError, match='NoneType'):
    planned.estimated(dataclasses.replace(made, config=forced), where)


@pytest.mark.slow
def test_bytes_of_one_device_are_cut_along_every_axis(capsys):
  def said(*mesh):
    status, text, _ = plan(capsys, *SMALL, '--plan', *(f'--config.mesh.{m}' for m in mesh))
    assert status == 0
    line = lambda word: next(x for x in text.splitlines() if word in x).split()
    number = lambda words: float(words[-2]) * dict(kB=1e3, MB=1e6)[words[-1]]
    return number(line('residual stream')), number(line('logits'))

  stream, logits = said()
  for mesh, parts in (('data=2', (2, 2)), ('sequence=2', (2, 2)), ('tensor=2', (1, 2))):
    assert said(mesh) == pytest.approx((stream / parts[0], logits / parts[1]), rel=0.01), mesh


def test_a_search_without_time_to_compile_says_so(capsys, monkeypatch, tmp_path):
  monkeypatch.setattr(compile_lib, 'available', lambda: True)
  monkeypatch.setattr(search, 'ENOUGH', 1e9)
  file = tmp_path / 'plan.json'
  status, text, _ = plan(capsys, *SMALL, '--plan=search', '--topology=v5e-1', f'--plan_json={file}')
  assert status == 0 and 'nothing was compiled: --plan_seconds=600' in text
  assert 'nothing was compiled' in json.loads(file.read_text())['reason']


def test_what_is_offloaded_lies_with_the_host(capsys, tmp_path):
  words = [*SMALL, '--plan', '--topology=h100:4', '--config.mesh.data=4']

  def planned_with(*more):
    status, text, _ = plan(capsys, *words, f'--plan_json={tmp_path / "plan.json"}', *more)
    assert status == 0 and ('in its host' in text) == bool(more)
    return json.loads((tmp_path / 'plan.json').read_text())['plan']

  here, away = planned_with(), planned_with('--config.offload=optimizer')
  assert here['host'] == 0 < away['host']
  assert away['state']['optimizer'] < 100  # scalars
  assert away['host'] + away['state']['optimizer'] == here['state']['optimizer']


@pytest.mark.slow
def test_search_takes_more_micro_batches_where_memory_is_short():
  c = config.resolve(config.load('llama:160M', [('mesh.data', '4')]))
  made, where = build.build(c), topologies.parse('v5e-4')
  found = search.Search(made, where, 60).try_({'data': 4}, 'none')
  assert found.settings['micro_batches'] > 1
  assert found.plan.peak <= where.chip.usable
  assert planned.estimated(search._with(made, {'data': 4}), where).fits == (
    c['micro_batches'] >= found.settings['micro_batches']
  )
