"""Configs: overrides from text, resolution, refusals that name the key, and the fingerprint."""

import itertools
import subprocess
import sys

from ml_collections import ConfigDict
import pytest

from lmjax import config
from lmjax import overrides
from lmjax import registry
from lmjax.config import ConfigError

# Leaves that are neither specs nor ranged quantities; a new leaf must be put into SPECS, RANGES or
# here, with a thought.
CHECKED_ELSEWHERE = {
  'init_from',  # a path, read at the start of a run
  'model.stack',
  'model.dtype',
  'model.param_dtype',
  'model.remat',  # models.model.resolve
  'offload',
  'kernels.attention',
  'kernels.blockwise_update',
  'kernels.delta_rule',
  'kernels.linear_cross_entropy',
  'kernels.quant_matmul',  # checks.places
  'data.mask_documents',
  'data.bos',
  'data.eos',
  'keep_best',
  'tensorboard',
  'report',
  'watchdog.exit',
  'mesh.stage_remat',  # booleans
  'data.cache',  # a path
  'mesh.replica',
  'mesh.stage',
  'mesh.data',
  'mesh.expert',
  'mesh.sequence',
  'mesh.tensor',
  'mesh.context',
  'mesh.stage_gather',
  'mesh.mode',  # parallel.mesh
  'sample.prompt',  # any text
}


def changed(*pairs) -> ConfigDict:
  c = config.default()
  with c.unlocked():
    for key, text in pairs:
      overrides.apply(c, key, text)
  return c


def value(c, key):
  return config.flat(c)[key]


def test_every_leaf_is_a_spec_or_ranged_or_on_the_list():
  for key, leaf in config.flat(config.default()).items():
    homes = [config.kind_of(key) is not None, key in config.RANGES, key in CHECKED_ELSEWHERE]
    assert sum(homes) == 1, f'{key} is in {sum(homes)} of SPECS, RANGES and the list of this test'
    if config.kind_of(key) is not None:
      assert isinstance(leaf, str)
    if key in config.RANGES:
      assert isinstance(leaf, (int, float)) and not isinstance(leaf, bool)
  assert CHECKED_ELSEWHERE | set(config.RANGES) <= set(config.flat(config.default()))


def test_resolving_twice_changes_nothing_and_fills_in_defaults():
  once = config.resolve(config.default())
  assert config.resolve(once) == once and config.fingerprint(once) == config.fingerprint(
    config.resolve(once)
  )
  assert once['model']['final_norm'] == 'rms_norm(eps=1e-06, scale=True)'
  for key, leaf in config.flat(once).items():
    assert leaf is None or isinstance(leaf, (bool, int, float, str)), key


@pytest.mark.parametrize(
  'key, text, want',
  [
    ('steps', '1e3', 1000),
    ('steps', '1_000', 1000),
    ('steps', '7', 7),
    ('batch_tokens', '32768.0', 32768),
    ('seed', str(2**31 - 1), 2**31 - 1),
    ('peak_lr', '3', 3.0),
    ('peak_lr', '1e-4', 1e-4),
    ('keep_best', 'false', False),
    ('keep_best', 'True', True),
    ('report', '0', False),
    ('model.dtype', 'bfloat16', 'bfloat16'),
    ('data.valid', '', ''),
    ('model.stack', 'block*3', 'block*3'),
    ('mesh.data', '-1', -1),
    ('model.embed', 'untied()', 'untied()'),
    ('sample.prompt', '1e3', '1e3'),
  ],
)
def test_overrides_take_the_type_of_the_leaf(key, text, want):
  got = value(changed((key, text)), key)
  assert got == want and type(got) is type(want)


@pytest.mark.parametrize(
  'key, text, words',
  [
    ('steps', '1.5', 'config.steps=1.5: a whole number is expected \\(it is 1000 now\\)'),
    ('steps', 'many', 'whole number'),
    ('steps', 'inf', 'whole number'),
    ('steps', 'nan', 'whole number'),
    ('peak_lr', 'fast', 'a number is expected'),
    ('keep_best', 'maybe', 'true or false'),
    ('keep_best', '2', 'true or false'),
    ('peak_rl', '1', "no such key; did you mean 'peak_lr'\\?"),
    ('model.widht', '1', "did you mean 'model.width'"),
    ('model.with.x', '1', 'no such key'),
    ('model', '3', 'this is a group; set one of architecture'),
    ('steps.x', '3', 'config.steps is 1000 and has nothing below it'),
    ('data.transforms.x', '3', 'has nothing below it'),
    ('model.dtype.x', '3', 'nothing below'),
    ('optim.adm.b2', '0.9', 'optim.adm.b2=0.9|adm'),
    ('optim.b2', '0.9', 'name the part and its argument'),
    ('model.blocks.block.mixr', 'gqa()', 'no such key'),
    ('model.blocks.other.mixr', 'gqa()', 'no such key'),
  ],
)
def test_overrides_that_cannot_be_meant_are_refused(key, text, words):
  before = config.default()
  with before.unlocked(), pytest.raises(ConfigError, match=words):
    overrides.apply(before, key, text)
  assert before.to_dict() == config.default().to_dict()  # nothing was half done


@pytest.mark.parametrize(
  'key, text, leaf, want',
  [
    ('optim.adam.b2', '0.99', 'optim', 'clip(norm=1.0) | adam(b2=0.99) | decay(rate=0.1)'),
    ('optim.clip.norm', '0.5', 'optim', 'clip(norm=0.5) | adam(b2=0.95) | decay(rate=0.1)'),
    ('model.mixer.kv_heads', '2', 'model.blocks.block.mixer', 'gqa(head_dim=32, kv_heads=2)'),
    ('model.mixer', 'gqa(head_dim=8)', 'model.blocks.block.mixer', 'gqa(head_dim=8)'),
    ('model.ffn', 'swiglu()', 'model.blocks.block.ffn', 'swiglu()'),
    ('model.blocks.block.norm.eps', '1e-5', 'model.blocks.block.norm', 'rms_norm(eps=1e-05)'),
    (
      'model.mixer.qk_norm',
      'rms_norm()',
      'model.blocks.block.mixer',
      'gqa(head_dim=32, qk_norm=rms_norm())',
    ),
    ('model.mixer.window', 'None', 'model.blocks.block.mixer', 'gqa(head_dim=32, window=None)'),
    ('model.position.pairs', 'interleaved', 'model.position', "rope(pairs='interleaved')"),
    ('model.position.pairs', '"interleaved"', 'model.position', "rope(pairs='interleaved')"),
  ],
)
def test_arguments_of_specs_are_set_by_path(key, text, leaf, want):
  c = changed((key, text))
  assert value(c, leaf) == want
  config.resolve(c)


def test_a_second_block_starts_as_a_copy_of_the_first():
  c = changed(
    ('model.mixer.kv_heads', '2'),
    ('model.blocks.local.mixer.window', '16'),
    ('model.stack', 'local + block*2'),
  )
  assert (
    c.model.blocks.local.mixer == 'gqa(head_dim=32, kv_heads=2, window=16)'
    and c.model.blocks.block.mixer == 'gqa(head_dim=32, kv_heads=2)'
  )
  assert c.model.blocks.local.ffn == c.model.blocks.block.ffn
  config.resolve(c)
  with c.unlocked(), pytest.raises(ConfigError, match='this model has the blocks .*name one'):
    overrides.apply(c, 'model.mixer', 'gqa()')


@pytest.mark.parametrize(
  'key, bad, words',
  [
    ('steps', 0, 'config.steps=0: at least 1'),
    ('seed', -1, 'seed'),
    ('peak_lr', float('nan'), 'peak_lr'),
    ('peak_lr', float('inf'), 'peak_lr'),
    ('model.dropout', 1.5, 'at most 1'),
    ('steps', '10', 'int is expected'),
    ('steps', True, 'steps'),
    ('keep_best', 1, 'bool is expected'),
    (
      'model.embed',
      'tyed()',
      "config.model.embed='tyed\\(\\)': no embed named 'tyed'; did you mean 'tied'",
    ),
    ('model.embed', '', 'empty spec'),
    ('optim', 'adam(b3=1)', 'config.optim=.*did you mean'),
    ('data.train', 'shakespear()', "did you mean 'shakespeare'"),
    (
      'model.blocks.block.mixer',
      'gqa(heads=3, kv_heads=2)',
      'config.model.blocks.block.mixer=.*heads=3',
    ),
    ('data.mask_documents', 'yes', 'bool'),
    ('optim', '__import__("os").system("true")', 'config.optim'),
    ('peak_lr', None, 'peak_lr'),
    ('sample.prompt', 3, 'str is expected'),
  ],
)
def test_resolving_refuses_and_names_the_key(key, bad, words):
  plain = config.default().to_dict()
  config._set(plain, key, bad)
  with pytest.raises(ConfigError, match=words) as e:
    config.resolve(plain)
  assert key in str(e.value) and '\n' not in str(e.value)


def test_resolving_refuses_unknown_and_missing_keys():
  plain = config.default().to_dict()
  plain['stepz'] = 3
  with pytest.raises(ConfigError, match="config.stepz: no such key; did you mean 'steps'"):
    config.resolve(plain)
  plain = config.default().to_dict()
  del plain['seed']
  with pytest.raises(ConfigError, match='config.seed is missing'):
    config.resolve(plain)


def test_settings_that_change_no_result_may_be_newer_than_a_config():
  """Runs of older versions can be evaluated, sampled and resumed."""
  plain = config.default().to_dict()
  want = config.resolve(plain)
  for key in ('trackers', 'kernels', 'watchdog'):
    del plain[key]
  del plain['sample']['prompt'], plain['sample']['rule']
  got = config.resolve(plain)
  assert got == want and config.fingerprint(got) == config.fingerprint(want)


def test_a_block_must_be_whole_and_hold_only_parts():
  for change, words in (
    (dict(ffn=None), 'config.model.blocks.block.ffn is missing'),
    (dict(mixr='gqa()'), "mixr: no such key; did you mean '.*mixer'"),
  ):
    plain = config.default().to_dict()
    block = plain['model']['blocks']['block']
    block.update({k: v for k, v in change.items() if v})
    for k in (k for k, v in change.items() if v is None):
      del block[k]
    with pytest.raises(ConfigError, match=words):
      config.resolve(plain)


# ---- fingerprints


def fingerprint(*pairs):
  return config.fingerprint(config.resolve(changed(*pairs)))


@pytest.mark.parametrize(
  'key, text',
  [
    ('mesh.data', '8'),
    ('mesh.mode', 'explicit'),
    ('log_every', '3'),
    ('checkpoint_every', '1'),
    ('keep_best', 'false'),
    ('eval.every', '7'),
    ('sample.tokens', '9'),
    ('data.valid', ''),
    ('model.unroll', '9'),
    ('model.remat', 'full'),
    ('offload', 'optimizer'),
    ('data.threads', '9'),
    ('tensorboard', 'false'),
    ('trackers', 'wandb()'),
    ('optim', 'clip() | adam(b2=0.95) | decay()'),
    ('model.final_norm', 'rms_norm(eps=0.000001)'),
  ],
)
def test_the_fingerprint_ignores_what_changes_neither_tokens_nor_mathematics(key, text):
  if key == 'optim':
    args = {
      n: dict(p.args) for n, p in registry.make_chain('optim', config.default().optim).items()
    }
    mine = {n: dict(p.args) for n, p in registry.make_chain('optim', text).items()}
    if args != mine:
      pytest.skip(
        'the defaults of the parts are others than those that the default config writes out'
      )
  assert fingerprint((key, text)) == fingerprint()


@pytest.mark.parametrize(
  'key, text',
  [
    ('peak_lr', '0.002'),
    ('seed', '1'),
    ('batch_tokens', '8192'),
    ('micro_batches', '2'),
    ('model.width', '64'),
    ('model.mixer.kv_heads', '1'),
    ('optim.adam.b2', '0.99'),
    ('data.train', 'shakespeare(split="valid")'),
    ('data.length', '64'),
    ('model.dtype', 'bfloat16'),
    ('data.eos', 'false'),
    ('steps', '2000'),
    ('model.init', 'fan_in()'),
    ('objective', 'clm(z_loss=0.1)'),
    ('data.pack', 'pad()'),
    ('init_from', 'somewhere'),
    ('schedule', 'constant()'),
  ],
)
def test_the_fingerprint_changes_with_tokens_and_mathematics(key, text):
  assert fingerprint((key, text)) != fingerprint()


def test_no_two_of_them_collide():
  keys = [('seed', str(i)) for i in range(20)] + [('model.width', str(i)) for i in range(1, 20)]
  assert len({fingerprint(k) for k in keys}) == 39
  assert fingerprint(('peak_lr', '1')) == fingerprint(('peak_lr', '1.0'))


def test_steps_may_grow_where_the_schedule_allows():
  long, short = (fingerprint(('schedule', 'constant()'), ('steps', s)) for s in ('2000', '1000'))
  assert (long == short) == registry.make('schedule', 'constant()').fact('extendable')
  assert registry.make('schedule', 'constant()').fact('extendable') and not registry.make(
    'schedule', 'cosine()'
  ).fact('extendable')


# ---- recipes


def test_recipes_are_found_by_name_path_and_argument(tmp_path):
  assert (
    config.load('quickstart').to_dict()
    == config.load(str(config.folder() / 'quickstart.py')).to_dict()
  )
  recipe = tmp_path / 'mine.py'
  recipe.write_text(
    'from lmjax.config import default\ndef get_config(size="7"):\n  c = default()\n  c.steps = '
    'int(size)\n  return c\n'
  )
  assert (
    config.load(str(recipe)).steps == 7
    and config.load(f'{recipe}:9', [('seed', '3'), ('seed', '4')]).steps == 9
  )
  assert config.load(str(recipe), [('seed', '3'), ('seed', '4')]).seed == 4
  with pytest.raises((AttributeError, KeyError)):
    config.load(str(recipe)).stepz = 3  # locked


@pytest.mark.parametrize(
  'source, words',
  [
    ('def get_config(:', 'line 1'),
    ('x = 1', 'defines no get_config'),
    (
      'from lmjax.config import default\ndef get_config():\n  c = default()\n  c.stepz = 1\n',
      'stepz',
    ),
  ],
)
def test_broken_recipes_are_named(tmp_path, source, words):
  (tmp_path / 'mine.py').write_text(source)
  with pytest.raises(ConfigError, match=words) as e:
    config.load(str(tmp_path / 'mine.py'))
  assert 'mine.py' in str(e.value)


@pytest.mark.parametrize(
  'path, words',
  [
    ('quikstart', "did you mean 'quickstart'"),
    ('no/such.py', 'no such file'),
    ('quickstart:3', 'takes no argument'),
  ],
)
def test_unknown_recipes_are_refused(path, words):
  with pytest.raises(ConfigError, match=words):
    config.load(path)


def test_resolving_touches_no_device():
  code = (
    'import sys; from lmjax import config; config.resolve(config.load("quickstart")); '
    'import jax; from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())'
  )
  out = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    cwd=config.folder().parent,
  )
  assert out.stdout.strip() == 'False'


def test_overriding_in_any_order_gives_the_same():
  pairs = [('seed', '3'), ('model.mixer.kv_heads', '2'), ('optim.adam.b2', '0.9')]
  assert len({fingerprint(*p) for p in itertools.permutations(pairs)}) == 1
