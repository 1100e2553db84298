"""The contract of surgeries: a run begins with what another one learnt, as the surgery says,
through the command line; bad input is refused before anything is written.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import build
from lmjax import config
from lmjax import kinds
from lmjax import main as main_lib
from lmjax import registry
from lmjax import restore
from lmjax.checkpoint import Checkpointer
from lmjax.nn import embedding

TINY = [
  '--config=quickstart',
  '--config.model.width=16',
  '--config.model.depth=2',
  '--config.model.mixer.head_dim=8',
  '--config.data.length=16',
  '--config.batch_tokens=64',
  '--config.data.valid=',
  '--config.steps=2',
  '--config.sample.tokens=0',
  '--config.tensorboard=false',
  '--config.report=false',
]


def run(workdir, *more):
  return main_lib.main([*TINY, f'--workdir={workdir}', *more])


def params(workdir, step=2):
  return Checkpointer(workdir / 'checkpoints').restore_params(step, only=('params',))['params']


@pytest.fixture(scope='module')
def headless(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run') / 'headless'
  assert run(workdir, '--config.objective=headless_cwt()') == 0
  return workdir


UNTIED = '--config.model.embed=untied()'


def test_a_head_is_a_copy_of_the_table_and_can_be_trained_alone(headless, tmp_path):
  begin = f'--config.init_from=add_head(run="{headless}")'
  only = '--config.optim=adam() | decay(rate=0.1) | train_only(names="embed/unembed")'
  assert run(tmp_path / 'w', begin, UNTIED, only, '--config.peak_lr=0.01') == 0
  before, after = params(headless), params(tmp_path / 'w')
  assert np.abs(after['embed'].pop('unembed') - before['embed']['table']).max() > 1e-4
  flat = lambda tree: config.flat(tree)
  assert flat(after).keys() == flat(before).keys()
  for key, value in flat(after).items():
    np.testing.assert_array_equal(value, flat(before)[key], err_msg=key)
  written = json.loads((tmp_path / 'w' / 'config.json').read_text())['init_from']
  assert written == f"add_head(run='{headless}')"
  assert run(tmp_path / 'w', begin, UNTIED, only, '--config.peak_lr=0.01') == 0, 'a resume'
  assert restore.built(str(headless / 'checkpoints' / '2')).config['objective'].startswith('headl')


@pytest.mark.parametrize(
  'spec, embed, words',
  [
    ('add_head(run="{}")', 'tied()', 'a matrix of its own here, as of untied'),
    ('add_head(run="{}")', 'untied(scale=2.0)', 'the same scale and multiple_of are expected'),
    ('densify(run="{}")', 'tied()', 'a mask for matrices there and none here'),
    ('merge_structured(run="{}")', 'tied()', 'structured_ffn(...) there'),
    ('pre_crmsnorm(run="{}")', 'tied()', 'norms there are rms_norm in layers pre, whose stream'),
    ('add_head(run="{}/none")', 'untied()', 'none: no such directory'),
    ('add_hed(run="{}")', 'untied()', "did you mean 'add_head'"),
    ('add_head()', 'untied()', "needs the argument 'run'"),
    ('add_head(run="{}", runs=1)', 'untied()', "did you mean 'run'"),
    ('add_head(run="{}") | add_head(run="x")', 'untied()', 'init_from'),
  ],
)
def test_what_is_refused(headless, tmp_path, capsys, spec, embed, words):
  begin = f'--config.init_from={spec.format(headless)}'
  assert run(tmp_path / 'w', begin, f'--config.model.embed={embed}') == 2
  said = capsys.readouterr().err
  assert words in said and 'Traceback' not in said, said
  assert not (tmp_path / 'w' / 'checkpoints').exists()


def test_a_directory_is_still_a_directory(tmp_path):
  for name in ('runs/a', 'runs/a(1)', '/x/y', 'gs://b/c', './add_head(1)', ''):
    assert config.surgery(name) is None
  assert config.surgery(' add_head(run="runs/a")').name == 'add_head'


def test_code_of_unknown_origin_is_not_imported():
  c = config.load('quickstart', []).to_dict()
  c['init_from'] = 'somewhere.else:Part(run="x")'
  with pytest.raises(config.ConfigError, match='config.init_from=.*would import code of somewhere'):
    config.refuse_code(c, 'config.json')
  c['init_from'] = 'runs/a'
  config.refuse_code(c, 'config.json')


def test_train_only_names_what_it_does_not_find():
  changes = [('optim', 'adam() | train_only(names="embed/table, segment_1/*")')]
  with pytest.raises(config.ConfigError, match="no parameter matches 'segment_1/\\*'"):
    build.build(config.resolve(config.load('quickstart', changes)))
  assert registry.make('optim', 'train_only(names="x")').fact('moments') is False


@pytest.mark.slow
def test_a_discriminator_begins_an_ordinary_run(tmp_path):
  both = [
    '--config.model.mixer=gqa(head_dim=4, causal=False)',
    '--config.model.embed_norm=layer_norm()',
  ]
  assert run(tmp_path / 'pair', *both, '--config.objective=electra()') == 0
  begin = f'--config.init_from=discriminator(run="{tmp_path / "pair"}")'
  mlm = ['--config.objective=mlm()', '--config.peak_lr=0.0', *both]
  assert run(tmp_path / 'w', begin, *mlm) == 0
  pair, own = params(tmp_path / 'pair'), params(tmp_path / 'w')
  wanted = {k: pair[k] for k in ('embed', 'embed_norm')} | pair['discriminator']
  assert config.flat(own).keys() == config.flat(wanted).keys()
  for key, value in config.flat(own).items():
    np.testing.assert_array_equal(value, config.flat(wanted)[key], err_msg=key)
  assert main_lib.main([f'--workdir={tmp_path / "pair"}', '--eval=lambada']) == 2, 'no decoder'


APART = {'bert2bert', 'two_stage'}  # tried in files of their own
TRIED = {'add_head', 'densify', 'discriminator', 'merge_structured', 'pre_crmsnorm'}


def test_surgeries_are_tried():
  assert set(registry.names('surgery')) == TRIED | APART


@pytest.mark.slow
def test_masks_go(tmp_path):
  """Also what an optimizer of whole matrices wrote behind them."""
  muon = '--config.optim=split(matrix=muon(), rest=adam())'
  sparse = tmp_path / 'sparse'
  assert run(sparse, '--config.model.linear=spdf(sparsity=0.5)', muon) == 0
  begin = f'--config.init_from=densify(run="{sparse}")'
  assert run(tmp_path / 'still', begin, '--config.peak_lr=0.0') == 0
  assert run(tmp_path / 'w', begin, '--config.peak_lr=0.01') == 0
  before, still, after = (
    params(tmp_path / d)['segment_0']['0_block']['mixer']['q']['kernel']
    for d in ('sparse', 'still', 'w')
  )
  assert (before == 0).mean() < 0.01 and (after == 0).mean() < 0.01
  assert (still == 0).mean() == 0.5 and np.all((still == before) | (still == 0))
  for linear in ('low_rank(rank=2)', 'spdf(sparsity=0.75)'):
    assert run(tmp_path / 'x', f'--config.model.linear={linear}', begin) == 2


def logits(workdir, made=None):
  """Of a run directory's parameters, or of those that a run has just begun with."""
  source, params, vars, _ = restore.load(workdir)
  if made is not None:
    source, state = made, restore.begin(made, made.init(jax.random.key(1)))
    params, vars = state.params, state.vars
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 16)), jnp.int32)
  ctx = kinds.Ctx(jnp.broadcast_to(jnp.arange(16), tokens.shape))
  return embedding.logits(source.architecture.apply({'params': params, **vars}, tokens, ctx))


def built(*changes):
  settings = [a.removeprefix('--config.').split('=', 1) for a in (*TINY[1:], *changes)]
  return build.build(config.resolve(config.load('quickstart', settings)))


@pytest.mark.slow
def test_a_trained_pre_norm_model_goes_on_in_its_other_forms(tmp_path):
  """From layer norm to one coordinate less, some steps there, and back."""
  common = [
    '--config.peak_lr=0.05',
    '--config.steps=4',
    '--config.model.embed=untied()',
    '--config.model.position=learned()',
    '--config.model.mixer=gqa(head_dim=8, heads=2, bias=True)',
    '--config.model.ffn=gelu(hidden=32, bias=True)',
  ]
  whole = ['--config.model.norm=layer_norm()', '--config.model.final_norm=layer_norm(bias=False)']
  short = (
    '--config.model.width=15',
    *(f'--config.model.{k}=pre_crmsnorm()' for k in ('norm', 'final_norm')),
  )
  centred = (
    '--config.model.residual=pre_rmsnorm()',
    *(f'--config.model.{k}=rms_norm(eps=1e-5)' for k in ('norm', 'final_norm')),
  )
  assert run(tmp_path / 'a', *common, *whole) == 0
  found = params(tmp_path / 'a', 4)['segment_0']['0_block']['norm_ffn']
  assert np.abs(found['scale'] - 1).max() > 1e-3 < np.abs(found['bias']).max()
  begin = lambda name: f'--config.init_from=pre_crmsnorm(run="{tmp_path / name}")'
  for source, targets in (('a', (short, centred)), ('b', (whole, centred))):
    want = logits(tmp_path / source)
    for target in targets:
      got = logits(tmp_path / source, built(*common, *target, begin(source)))
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    if source == 'a':
      assert run(tmp_path / 'b', *common, *short, begin('a')) == 0
      assert run(tmp_path / 'b', *common, *short, begin('a')) == 0, 'a resume'
      assert np.abs(logits(tmp_path / 'b') - want).max() > 1e-2, 'it went on'


@pytest.mark.slow
def test_structured_factors_lose_their_guide_or_become_matrices(tmp_path):
  factors, both = 'structured_ffn(rank=4)', 'structured_ffn(rank=4, guided=0.5, steps=2)'
  assert run(tmp_path / 'a', f'--config.model.linear={both}', '--config.peak_lr=0.05') == 0
  begin, want = (
    f'--config.init_from=merge_structured(run="{tmp_path / "a"}")',
    logits(tmp_path / 'a'),
  )
  for linear in (factors, 'dense()'):
    got = logits(tmp_path / 'a', built(f'--config.model.linear={linear}', begin))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  assert run(tmp_path / 'w', begin) == 0
