"""What the contract suites share: small instances of every registered part, and a small model to
put them into.

`SPECS[kind]` lists the argument rows that are tried; every suite asserts that no registered part is
missing here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import _rows
from lmjax import config
from lmjax import kinds
from lmjax import registry
from lmjax import specs
from lmjax.models import model as model_lib
from lmjax.nn.params import Scheme
from lmjax.parallel import facts as facts_lib

WIDTH, STEPS, BATCH, VOCAB, DEPTH = 32, 10, 2, 11, 4

SPECS: dict[str, tuple[str, ...]] = {
  'norm': (
    'rms_norm()',
    'rms_norm(scale=False)',
    'rms_norm(eps=0.5)',
    'token_rms_norm(eps=0.5)',
    'token_rms_norm(scale=False)',
    'layer_norm()',
    'layer_norm(bias=False)',
    'layer_norm(scale=False, bias=False)',
    'pre_crmsnorm()',
    'pre_crmsnorm(scale=True, eps=0.5)',
    'power_norm()',
    'power_norm(groups=3, eps=0.5, bias=False)',
    'power_norm(groups=0, scale=False, variant="batch")',
  ),
  'residual': (
    'pre()',
    'post()',
    'parallel()',
    'parallel(shared_norm=False)',
    'peri_ln()',
    'layernorm_scaling()',
    'mix_ln()',
    'mix_ln(alpha=0.0)',
    'mix_ln(alpha=1.0)',
    'pre_rmsnorm()',
    'res_post()',
    'pre_ffn()',
  ),
  'mixer': (
    'gqa(head_dim=8)',
    'gqa(head_dim=8, kv_heads=2)',
    'gqa(head_dim=8, kv_heads=1, bias=True)',
    'gqa(head_dim=8, heads=2, scale=0.7)',
    'gqa(head_dim=8, window=3)',
    'gqa(head_dim=8, window=1)',
    'gqa(head_dim=8, window=4, kv_heads=2, position=alibi())',
    'gqa(head_dim=8, cap=1.5)',
    'gqa(head_dim=8, qk_norm=rms_norm())',
    'gqa(head_dim=8, position=none())',
    'gqa(head_dim=8, position=rope(pairs="interleaved", fraction=0.5))',
    'gqa(head_dim=8, causal=False)',
    'gqa(head_dim=8, causal=False, window=3, position=alibi())',
    'deltanet(head_dim=8)',
    'deltanet(head_dim=8, heads=2, value_dim=12, gate=True, negative=True)',
    'deltanet(head_dim=8, taps=0, feature="relu", sums=True, norm=None)',
    'deltanet(head_dim=8, taps=1, feature="elu", sums=True)',
    'gqa(head_dim=8, kv_heads=2, qk_norm=token_rms_norm())',
    'qkv_bias(inner=gqa(head_dim=8, kv_heads=2, window=4))',
    'relative_bias(inner=gqa(head_dim=8, kv_heads=2), shared=False)',
    'relative_bias(inner=gqa(head_dim=8, window=4), buckets=6, distance=5, shared=False)',
    'relative_bias(inner=gqa(head_dim=8, causal=False), buckets=8, distance=6, shared=False)',
  ),
  'ffn': (
    'gelu()',
    'gelu(approximate=False, bias=True)',
    'gelu(mult=1.5, multiple_of=20)',
    'swiglu()',
    'swiglu(hidden=24, bias=True)',
    'swiglu(multiple_of=32)',
    'geglu()',
    'geglu(hidden=24, bias=True, approximate=False)',
    'relu()',
    'relu(bias=True)',
    'squared_relu()',
    'squared_relu(bias=True)',
    'base_layers(experts=3)',
    'base_layers(experts=4, hidden=24, sublayers=2, bias=True)',
  ),
  'linear': (
    'dense()',
    'low_rank(rank=4)',
    'low_rank(rank=2, alpha=3.0)',
    'sltrain(rank=4, delta=0.2)',
    'sltrain(rank=2, delta=1.0, alpha=3.0)',
    'spdf(sparsity=0.0)',
    'spdf(sparsity=0.5)',
    'structured_ffn(rank=4)',
    'structured_ffn(kind="block_dense", rank=4, blocks=2)',
    'structured_ffn(kind="block_shuffle", blocks=1)',
    'quantized(bits=8, symmetric=True)',
    'quantized(bits=4, group=3)',
    'quantized(bits=2, per="tensor")',
    'int8(tau=0.0)',
    'int8(tau=0.0, scaling="tensor")',
    'fp8()',
    'fp8(gradients=None, scaling="tensor")',
  ),
  'position': (
    'rope()',
    'rope(pairs="interleaved")',
    'rope(fraction=0.5)',
    'rope(scaling="linear", factor=4.0)',
    'rope(scaling="ntk", factor=4.0)',
    'rope(scaling="llama3", factor=8.0, original=64)',
    'alibi()',
    'none()',
    'learned()',
    'learned_types()',
    'learned_types(offset=2, types=1)',
    'sinusoidal()',
    'sinusoidal(base=100.0, scale=1.0)',
  ),
  'init': (
    'gpt2()',
    'gpt2(sigma=0.1)',
    'fan_in()',
    'fan_in(gain=2.0, embed=0.3, scale_residual=False)',
    'mup(base_width=16)',
    'mup(base_width=64, sigma=0.1, base_head_dim=16)',
    'palm()',
    't5()',
    't5(scale_logits=False)',
  ),
  'embed': (
    'tied()',
    'tied(multiple_of=8)',
    'tied(multiple_of=8, bias=True)',
    'tied(scale=3.0)',
    'untied()',
    'untied(multiple_of=8)',
    'untied(scale=3.0)',
    'untied(multiple_of=8, bias=True)',
    'stable()',
    'stable(multiple_of=8, tied=False)',
    'stable(norm=rms_norm(), scale=3.0)',
    'factorized(size=4)',
    'factorized(size=4, scale=3.0, position=learned(), norm=layer_norm())',
    'factorized(size=4, multiple_of=8, position=sinusoidal(scale=1.0))',
  ),
  'architecture': (
    'transformer()',
    'head_transform()',
    'head_transform(norm=rms_norm(), bias=False, approximate=True)',
  ),
  'cache': ('full()', 'window()'),
  'quantizer': (
    'rtn(bits=8)',
    'rtn(bits=4, group=8, symmetric=True)',
    'rtn(bits=2, group=4, clip=True)',
    'rtn(bits=5, per="tensor")',
    'gptq(bits=4)',
    'gptq(bits=3, group=8, act_order=True, symmetric=True)',
    'llm_int8()',
    'llm_int8(tau=None, scaling="row")',
    'llm_int8(keep=3)',
  ),
  'objective': (
    'clm()',
    'clm(z_loss=0.01)',
    'clm(label_smoothing=0.2)',
    'mlm(rate=0.4)',
    'doremi(reference="r")',
    'doge(inner=clm(z_loss=0.01))',
    'headless_cwt()',
    'headless_cwt(inner=mlm(rate=0.4), block=4)',
    'sub_models(every=1)',
  ),
}
SPECS = {kind: (*rows, *_rows.specs(kind)) for kind, rows in SPECS.items()}

# Parts that need an encoder, or networks of their own: their suites are in files of their own.
APART = {
  'mixer': ('cross_attention(head_dim=8)',),
  'objective': ('electra()',),
  'residual': ('pre_cross(cross=cross_attention(head_dim=8))',),
  'architecture': ('encoder_decoder(encoder="block*2")', 'mixture_of_recursions()', 'megabyte()'),
}


def name(spec: str) -> str:
  return specs.call(spec).name


def alone(kind: str) -> set[str]:
  """Parts that are not apart."""
  return _rows.names(kind) - {name(s) for s in APART.get(kind, ())}


def uncovered(kind: str) -> set[str]:
  """Registered parts without a row, and rows without a part."""
  rows = (*SPECS[kind], *APART.get(kind, ()))
  return _rows.names(kind) ^ {name(s) for s in rows}


def arguments(kind: str, spec: str) -> dict:
  """The arguments of a row with all defaults."""
  return dict(registry.make(kind, spec).args)


class Tokenizer:
  """What objectives ask of a tokenizer."""

  vocab_size, bos, eos, pad, mask = VOCAB, 7, 8, 9, 10


@functools.cache
def scheme(
  init='fan_in(embed=1.0)', linear='dense()', position='rope()', length=STEPS, dtype=jnp.float32
) -> Scheme:
  return Scheme(
    init=registry.make('init', init, depth=DEPTH, width=WIDTH)(),
    linear=registry.make('linear', linear),
    position=registry.make('position', position, length=length)(parent=None),
    param_dtype=dtype,
  )


def ctx(
  batch=BATCH, steps=STEPS, segments=None, positions=None, train=False, depth=0, memory=None, **how
) -> kinds.Ctx:
  """A context of rows that are one document each, unless segments say otherwise."""
  if positions is None:
    positions = (
      jnp.arange(steps, dtype=jnp.int32) * jnp.ones((batch, 1), jnp.int32)
      if segments is None
      else (jnp.asarray(positions_of(segments)))
    )
  segments = None if segments is None else jnp.asarray(segments, jnp.int32)
  return kinds.Ctx(
    positions, segments, depth=depth, memory=memory, train=train, scheme=scheme(**how)
  )


def positions_of(segments) -> np.ndarray:
  """Positions within each document, counted anew where the segment changes."""
  out = np.zeros_like(np.asarray(segments))
  for b, row in enumerate(np.asarray(segments)):
    for t in range(1, len(row)):
      out[b, t] = out[b, t - 1] + 1 if row[t] == row[t - 1] else 0
  return out.astype(np.int32)


def normal(*shape, seed=0, scale=1.0) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, jnp.float32)


def stir(variables, seed=0, scale=0.3):
  """Unboxed variables moved away from their initial values, so that gains of 1 and biases of 0
  show.
  """
  leaves, tree = jax.tree.flatten(facts_lib.unbox(variables))
  return jax.tree.unflatten(
    tree,
    [
      a + normal(*a.shape, seed=seed + i, scale=scale).astype(a.dtype) for i, a in enumerate(leaves)
    ],
  )


def values(boxed, seed=0, spread=0.3):
  """Unboxed parameters for abstract boxed variables, without compiling an initializer: matrices of
  gain 1, gains about 1, biases not 0.
  """

  def one(i, leaf):
    fact, shape = leaf.fact, leaf.value.shape
    around = 1.0 if fact.role == 'norm' else 0.0
    matrix = fact.role in ('hidden', 'residual', 'unembed')
    scale = (
      fact.fans(shape)[0] ** -0.5
      if matrix
      else 1.0
      if fact.role in ('embed', 'position')
      else spread
    )
    return (around + normal(*shape, seed=seed + i, scale=scale)).astype(leaf.value.dtype)

  leaves, tree = jax.tree.flatten(boxed, is_leaf=facts_lib.is_box)
  with jax.ensure_compile_time_eval():  # kept by callers' caches: no tracer, also where one traces
    return jax.tree.unflatten(tree, [one(i, leaf) for i, leaf in enumerate(leaves)])


def abstract(module, *args):
  """The boxed variables of a module, shapes only."""
  return jax.eval_shape(lambda: module.init(jax.random.key(0), *args))


def settings(**changes) -> dict:
  """`config.model` as a plain dict, small; `blocks__local__mixer=...` reaches into groups."""
  m = config.default().model.to_dict()
  m.update(width=WIDTH, depth=2, init='fan_in(embed=1.0)', position='rope()')
  m['blocks']['block']['mixer'] = 'gqa(head_dim=8)'
  for key, value in changes.items():
    node, *path = m, *key.split('__')
    for p in path[:-1]:
      node = node.setdefault(p, dict(config.block().to_dict()) if node is m['blocks'] else {})
    node[path[-1]] = value
  return m


@functools.cache
def model(length=STEPS, vocab=VOCAB, architecture='transformer()', **changes):
  """The architecture of a small model, made as `build` makes it."""
  changes = {'architecture': architecture, **changes}
  resolved = model_lib.resolve(settings(**changes), vocab, length)
  return registry.make('architecture', architecture, model=resolved)()


@functools.cache
def model_params(seed=0, **how):
  """Stirred parameters of `model(**how)`."""
  net = model(**how)
  tokens = jnp.zeros((1, net.model.length), jnp.int32)
  return values(abstract(net, tokens, ctx(1, net.model.length)), seed=seed)


def batch(segments, seed=0, vocab=VOCAB) -> dict[str, jax.Array]:
  """A batch as the data gives it: rows of `segments`, positions counted within documents."""
  segments = np.asarray(segments, np.int32)
  tokens = np.random.default_rng(seed).integers(0, vocab, segments.shape)
  return dict(
    tokens=jnp.asarray(tokens, jnp.int32),
    segments=jnp.asarray(segments),
    positions=jnp.asarray(positions_of(segments)),
  )


def close(got, want, tol=1e-5):
  """Equal up to `tol` of the largest value of the reference."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape, (got.shape, want.shape)
  assert np.isfinite(want).all() and np.isfinite(got).all()
  worst = np.max(np.abs(got - want), initial=0) / max(1e-30, np.max(np.abs(want), initial=0))
  assert worst <= tol, f'off by {worst:.2e} of the largest value, {tol:.0e} is allowed'


def trees_close(got, want, tol=1e-5):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want)):
    try:
      close(a, b, tol)
    except AssertionError as e:
      raise AssertionError(f'{jax.tree_util.keystr(path)}: {e}') from None


def same(got, want):
  """Bit-equal."""
  got, want = np.asarray(got), np.asarray(want)
  assert got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()


def numpy64(tree):
  return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def slope(f, x: np.ndarray, eps=1e-6) -> np.ndarray:
  """The gradient of a scalar float64 function by central differences."""
  out = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    up, down = x.copy(), x.copy()
    up[i] += eps
    down[i] -= eps
    out[i] = (f(up) - f(down)) / (2 * eps)
  return out


def check_facts(variables):
  """Every parameter carries its fact, and every axis is one that sharding knows."""
  from lmjax.parallel import shard

  leaves = (
    jax.tree.leaves(variables['params'], is_leaf=facts_lib.is_box) if 'params' in variables else []
  )
  for leaf in leaves:
    assert facts_lib.is_box(leaf), 'a parameter without a fact: make it with nn.params.param'
    assert len(leaf.fact.names) == leaf.value.ndim
    assert all(n is None or n in shard.RULES for n in leaf.fact.names), leaf.fact
    if leaf.fact.role in ('hidden', 'residual', 'unembed', 'embed', 'position'):
      assert leaf.fact.is_matrix, leaf.fact
  return leaves
