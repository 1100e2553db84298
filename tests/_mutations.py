"""Recipes with one leaf changed at random, command lines at random, and what must hold of all."""

import contextlib
import copy
import functools
import math
import resource
import signal
import threading

from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st

from lmjax import build
from lmjax import mesh_checks
from lmjax import config
from lmjax import kinds
from lmjax import registry
from lmjax.parallel import mesh as mesh_lib

TINY = ('quickstart', 'gpt2:tiny', 'llama:tiny', 'bert_tiny')
LARGE = ('gpt2:124M', 'llama:1B')
SECONDS, BYTES = 60, 2**30  # of one example; the largest build takes two seconds

INSIDES = (  # words that no sentence to a user holds
  *('Traceback', 'jaxpr', 'Traced<', 'ShapedArray', 'flax', 'XLA', 'jit', 'object at 0x'),
  *('<lambda>', '<function', '<class', 'float32[', 'int32[', 'dtype(', '_path_', 'NotImplemented'),
  *(
    'unexpected keyword',
    'required positional',
    'operand',
    'Concretiz',
    'SyntaxError',
    'int too large',
  ),
)


def examples(n: int):
  checks = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
  return settings(
    max_examples=n, deadline=None, derandomize=True, suppress_health_check=checks, database=None
  )


@contextlib.contextmanager
def bounded():
  """Ends what takes too long, and fails where the process has grown by more than BYTES."""

  def stop(*_):
    raise TimeoutError(f'more than {SECONDS} s')

  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  can_stop = threading.current_thread() is threading.main_thread()
  if can_stop:
    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
  try:
    yield
  finally:
    if can_stop:
      signal.setitimer(signal.ITIMER_REAL, 0)
      signal.signal(signal.SIGALRM, old)
  grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
  assert grown < BYTES, f'grew by {grown / 2**20:.0f} MiB'


def settle(c):
  """All that is checked before a device works; what resolves must resolve to itself."""
  resolved = config.resolve(c)
  assert config.resolve(resolved) == resolved
  assert config.fingerprint(resolved) == config.fingerprint(config.resolve(resolved))
  run = build.build(resolved)
  mesh = mesh_lib.abstract(resolved['mesh'])
  if mesh is not None:
    mesh_checks.devices(run, mesh)
    run.placements(mesh)


def readable(error: ValueError, *names: str):
  """One or two sentences that name the key."""
  text = str(error)
  assert '\n' not in text and len(text) < 1000, text
  assert not [w for w in INSIDES if w in text], text
  assert any(n in text for n in names), f'none of {names} in {text!r}'


def builds_or_refuses(change, key: str):
  """Runs `change`, which ends in `settle`. Any error but a ValueError is a failure of the test."""
  with bounded():
    try:
      change()
    except ValueError as e:
      readable(e, f'config.{key}', key.split('.')[-1])


@functools.cache
def _loaded(recipe: str):
  return config.load(recipe).to_dict()


def recipe_of(name: str) -> dict:
  return copy.deepcopy(_loaded(name))


# ---- mutations

NUMBERS = (
  *(0, -1, 1, 2, 3, 7, 10**6, 10**9, 2**31 - 1, 2**31, 10**12, 2**63, 10**30, 10**400),
  *(0.5, 1e-3, 1e-300, -0.0, 1.0, 1.5, 1e9, 1e30, 1e308, math.nan, math.inf, -math.inf),
)
ODD = (
  *(True, False, None, '', 'x', '1', 'none', 'nan', [], [1], {}, {'a': 1}, (1, 2), {1}, b'x'),
  *('block', '\0', '\n', '\ud800', 'é' * 30, 'x' * 100_000, 1j),
)
LITERALS = (
  *('0', '-1', '1', '2', '3', '7', '1000000000', '2147483648', '10**9', '1' + '0' * 30),
  *('1' + '0' * 400, '0x' + 'f' * 5000, '0.5', '1e-300', '1.5', '-0.5', '1e30', '1e308', '1e999'),
  *('-1e999', 'True', 'False', 'None', '""', '"x"', '()', '(1, 2)', '[1]', '{}', '{1: 2}', 'b"x"'),
  *('...', '1j', 'x', 'x()', 'gqa()', 'rms_norm()', 'rope()', 'rms_norm() | layer_norm()'),
  *('rms_norm(eps=x())', '"\\ud800"', '"\\0"', 'lambda: 1', 'lambda a:b', '[i for i in x]'),
  *('f"{x}"', '"' + 'x' * 20_000 + '"', '-' * 3000 + '1', '(' * 150 + ')' * 150, '*x', 'not 1'),
  *('1 if 1 else 2', 'a.b', '1 < 2', 'await x', '"/dev/zero"', '"."'),
)
CHARACTERS = (
  *('', 'x', '(', ')', ',', '=', '|', '+', '*', ' ', '\n', '\0', 'é', '\N{GRINNING FACE}', '"'),
  *("'", '-', '.', ':', '\ud800', '\u200b', '#', '\\', '1', ';', '`', '@', '\uff08'),
)
OUTSIDE = (  # importable at most; what a part of one's own raises when it is built is its affair
  *('math:pi', 'nowhere.at:X()', '.os:path()', 'json:nothing()', 'os:path()', 'a..b:c()', 'math:'),
  *(':x', 'builtins:int()', 'sys:maxsize', 'lmjax.models.norms.layer_norm:LayerNorm(eps="x")'),
  'lmjax.models.norms.rms_norm:RmsNorm()',
)
TEXTS = {  # leaves that are small languages of their own
  'model.stack': (
    *('block*1000000000', 'block*2147483648', 'block*' + '9' * 30, 'block*0', 'block*-1', 'blok'),
    *('block*1.5', 'block + block*3', 'shared(block)*4', 'shared(block)*1000000000', 'block()'),
    *('(block, block)*2', 'block | block', '(block', 'block*x', '3*block', 'block*2*3', '[block]'),
    *('shared()', 'shared(shared(block))', '"block"', '(block,)*3', 'block:block', 'block*True'),
    *('block + ' * 3000 + 'block', '(' + 'block, ' * 3000 + ')', '*block', 'shared(*x)'),
  ),
  'model.remat': (
    *('names()', 'names(', 'names(mixer_out', 'full()', 'dots', 'names(mixer_out, ffn_out)'),
    *('names(x)', 'Full', 'n' * 1000, 'names(' + 'mixer_out,' * 5000 + ')', 'names(qkv)'),
    *('offload(qkv)', 'offload(', 'names(qkv) + offload(qkv)', 'names(qkv) + offload(layer_in)'),
  ),
  'offload': ('optimizer', 'Optimizer', 'o' * 1000, 'params'),
  'model.dtype': ('float16', 'float64', 'int8', 'bfloat16', 'f32'),
  'model.param_dtype': ('float16', 'bfloat16', 'float64', 'int8'),
  'mesh.mode': ('explicit', 'manual', 'AUTO'),
}
ALL = [(kind, name) for kind in kinds.KINDS for name in registry.names(kind)]
FREE = st.text(max_size=30)


def nested(n: int) -> tuple[str, ...]:
  """Texts of a depth, or a length, of n."""
  return (
    *('(' * n + 'x' + ')' * n, 'a(b=' * n + '1' + ')' * n, '-' * n + 'a', 'a() | ' * n + 'a()'),
    *('a() + ' * n + 'a()', '0.5*' * n + 'a()', '[' * n + ']' * n, 'a.' * n + 'b', 'a:' * n + 'b'),
    *('not ' * n + 'a', 'a' * n, 'a(x=' + '1+' * n + '1)', 'a' + '()' * n, 'a' + '[0]' * n),
    *('a(x=' + '-' * n + '1)', 'lambda: ' * n + '1', 'a(' + 'x=1, ' * n + ')'),
  )


@st.composite
def calls(draw, kind: str):
  """A part of this kind with one or two arguments changed."""
  name = draw(st.sampled_from(registry.names(kind)))
  params = registry.signature(registry.get(kind, name))
  args = {k: '"x"' for k, p in params.items() if p.default is p.empty}
  for key in draw(st.lists(st.sampled_from(sorted(params)), max_size=2)) if params else ():
    args[key] = draw(st.sampled_from(LITERALS))
  return f'{name}({", ".join(f"{k}={v}" for k, v in args.items())})'


@st.composite
def edits(draw, text: str):
  """One character of a text put in, taken out or replaced."""
  at, off = draw(st.integers(0, max(0, len(text) - 1))), draw(st.integers(0, 1))
  return text[:at] + draw(st.sampled_from(CHARACTERS)) + text[at + off :]


def joints(text: str) -> tuple[str, ...]:
  weights = ('0.5', '-1', '0', '1e999', 'x', '1j', '"2"', 'True', '1' + '0' * 400)
  return (
    *(f'{text} {joint} {text}' for joint in ('|', '+', '-', ';', '#')),
    *(f'{w}*{text}' for w in weights),
    *(f'{text}*2', f'{text} |', f'| {text}', f'({text})', f'"{text}"'),
  )


def specs_like(kind: str, text: str):
  """Mutations of a spec."""
  unknown = ('x', 'wdth', 'class', 'éa', 'parent', 'name', 'model', 'facts', 'self', 'steps')
  return st.one_of(
    calls(kind),
    calls(kind),
    edits(text),
    st.sampled_from([text.replace('(', f'({word}=1, ', 1) for word in unknown]),
    st.sampled_from(
      [text.replace(')', '', 1), text.replace('(', f'(x={text}, ', 1), '', ' ', '\n', '()', 'None']
    ),
    st.sampled_from(ALL).map(lambda found: f'{found[1]}()'),
    st.sampled_from((50, 150, 300, 1000, 3000, 20_000)).map(nested).flatmap(st.sampled_from),
    st.sampled_from(joints(text)),
    st.sampled_from(OUTSIDE),
    st.sampled_from(ODD + NUMBERS),
    FREE,
  )


@st.composite
def mutations(draw, recipes):
  """(recipe, key, value): one leaf of a recipe with another value."""
  recipe = draw(st.sampled_from(recipes))
  leaves = config.flat(_loaded(recipe))
  key = draw(st.sampled_from(sorted(leaves)))
  found = config.kind_of(key)
  if found is not None:
    return recipe, key, draw(specs_like(found[0], leaves[key]))
  values = st.sampled_from(NUMBERS + ODD)
  return recipe, key, draw(values | st.sampled_from(TEXTS[key]) if key in TEXTS else values | FREE)


# ---- the command line

TYPED = (
  '0',
  '-1',
  '1',
  '2',
  '1e3',
  '1_000',
  '1e30',
  '9' * 500,
  '0.5',
  'nan',
  'inf',
  '-inf',
  'true',
)
TAILS = ('', '', '', '.', '.x', '.adam.b2', '.b2', '.head_dim', '.hidden', '.clip.norm', '..', '.é')


@st.composite
def commands(draw):
  """(recipe, key, text) of --config.key=text."""
  recipe = draw(st.sampled_from(TINY))
  leaves = config.flat(_loaded(recipe))
  short = [f'model.{p}' for p in config.BLOCK_PARTS]
  news = [f'model.blocks.local.{p}' for p in config.BLOCK_PARTS]
  key = draw(st.sampled_from(sorted(leaves) + short + news + ['model', 'model.blocks', 'stepz']))
  found = config.kind_of(key)
  texts = [FREE, st.sampled_from(LITERALS), st.sampled_from(TYPED)]
  texts += [specs_like(found[0], leaves[key])] if key in leaves and found else []
  text = draw(st.one_of(texts).filter(lambda t: isinstance(t, str)))
  tail = draw(st.sampled_from(TAILS)) if found or draw(st.booleans()) else ''
  return recipe, key + tail if draw(st.integers(0, 9)) else draw(FREE), text
