"""Building a run: every recipe builds and lowers without work; what cannot go together is refused
with the key.
"""

import jax
import jax.numpy as jnp
import pytest

from lmjax import build
from lmjax import checks
from lmjax import mesh_checks
from lmjax import config
from lmjax.parallel import facts as facts_lib

SMALL = (
  ('model.width', '32'),
  ('model.depth', '2'),
  ('data.length', '16'),
  ('batch_tokens', '128'),
  ('model.mixer.head_dim', '8'),
)
BERT = (('objective', 'mlm()'), ('model.mixer.causal', 'False'))


def resolved(*pairs):
  return config.resolve(config.load('quickstart', [*SMALL, *pairs]))


def run(*pairs) -> build.Run:
  return build.build(resolved(*pairs))


@pytest.mark.parametrize('recipe', config.recipes())
def test_every_recipe_builds_and_lowers(recipe):
  run = build.build(config.resolve(config.load(recipe)))
  lowered = jax.jit(run.step, donate_argnums=0).lower(
    run.state_shapes, run.batch_shapes(), jax.random.key(0)
  )
  assert 'stablehlo' in lowered.as_text() and run.rows * run.length == run.config['batch_tokens']
  counts = build.counts(run)
  assert counts['total'] == sum(v for k, v in counts.items() if k != 'total') > 0


def test_a_run_is_what_its_config_says():
  r = run(
    ('micro_batches', '2'),
    ('peak_lr', '0.5'),
    ('model.init', 'mup(base_width=16)'),
    ('schedule', 'constant()'),
  )
  assert (
    r.rows == 8
    and r.length == 16
    and r.lookahead == 1
    and r.batch_shapes()['tokens'].shape == (8, 17)
  )
  assert list(r.state_shapes.opt) == ['clip', 'adam', 'decay']
  factors = {
    jax.tree_util.keystr(p): f for p, f in jax.tree_util.tree_leaves_with_path(r.lr_factors)
  }
  assert {f for k, f in factors.items() if 'kernel' in k} == {0.5} and {
    f for k, f in factors.items() if 'kernel' not in k
  } == {1.0}
  for (path, fact), shape in zip(
    jax.tree_util.tree_leaves_with_path(r.facts, is_leaf=lambda x: isinstance(x, facts_lib.Fact)),
    jax.tree.leaves(r.shapes),
  ):
    assert len(fact.names) == len(shape.shape) and fact.role != 'other', path


def test_the_vocabulary_is_the_tokenizers_unless_given():
  assert run().shapes['params']['embed']['table'].shape == (260, 32)
  assert run(('model.vocab', '264')).shapes['params']['embed']['table'].shape == (264, 32)


def test_parameters_do_not_depend_on_the_batch_they_are_shaped_with():
  a, b = run(), run(('batch_tokens', '256'))
  assert jax.tree.map(lambda s: s.shape, a.shapes) == jax.tree.map(lambda s: s.shape, b.shapes)


@pytest.mark.parametrize(
  'pairs, words',
  [
    ([('objective', 'mlm()')], 'config.model.blocks.block.mixer=.*looks both ways'),
    ([('model.mixer.causal', 'False')], 'looks only back'),
    (
      [*BERT, ('data.tokenizer', 'bytes(specials=False)'), ('data.eos', 'false')],
      'config.objective: .*mask token',
    ),
    (
      [('batch_tokens', '120')],
      'config.batch_tokens=120 does not divide by config.data.length=16; the nearest that do are '
      '112 and 128',
    ),
    ([('micro_batches', '3')], 'config.micro_batches=3'),
    ([('model.mixer.head_dim', '5')], 'config.model: .*width=32 .* head_dim=5'),
    ([('model.stack', 'blok*2')], "config.model.stack='blok\\*2'.*did you mean 'block'"),
    ([('model.dtype', 'int8')], 'config.model.dtype'),
    (
      [('model.blocks.other.ffn', 'swiglu()'), ('model.stack', 'block')],
      'config.model.blocks.other is not used',
    ),
    ([('model.remat', 'names(x)')], "config.model.remat='names\\(x\\)'.*'x'"),
    ([('model.vocab', '10')], 'config.model.vocab=10.*260'),
    ([('data.tokenizer', 'bpe(path="/no/such/file")')], 'config.data.tokenizer'),
  ],
)
def test_what_cannot_go_together_is_refused(pairs, words):
  with pytest.raises(build.ConfigError, match=words) as e:
    run(*pairs)
  assert '\n' not in str(e.value)


def test_documents_must_be_kept_apart_by_every_mixer_that_is_used():
  blind = [('model.mixer', '_blind:Blind()')]
  with pytest.raises(
    build.ConfigError, match='cannot keep documents apart.*config.data.mask_documents=false'
  ):
    run(*blind)
  run(*blind, ('data.mask_documents', 'false'))


def test_objectives_that_couple_rows_are_not_accumulated():
  with pytest.raises(
    build.ConfigError, match='config.micro_batches=2: the loss of .* couples all rows'
  ):
    run(('objective', '_blind:Coupled()'), ('micro_batches', '2'))
  run(('objective', '_blind:Coupled()'))


def test_rows_must_divide_over_the_devices_that_share_them():
  mesh = jax.make_mesh((4, 2), ('data', 'tensor'))
  mesh_checks.devices(run(), mesh)
  mesh_checks.devices(run(), None)
  with pytest.raises(
    build.ConfigError, match='gives 2 rows a micro-batch, which do not divide over 4 devices'
  ):
    mesh_checks.devices(run(('micro_batches', '4')), mesh)


def test_moments_of_the_optimizer_have_the_shapes_of_their_parameters():
  r = run()
  moments = [
    jax.tree.map(lambda s: s.shape, m)
    for m in jax.tree.leaves(
      r.state_shapes.opt, is_leaf=lambda x: isinstance(x, dict) and 'embed' in x
    )
    if isinstance(m, dict)
  ]
  assert moments.count(jax.tree.map(lambda s: s.shape, r.shapes['params'])) == 2
  assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(r.state_shapes.params))


def test_what_is_not_trained_and_what_samples_from_two_models_is_refused_at_once():
  with pytest.raises(build.ConfigError, match='config.model.linear=.*not trained'):
    checks.trained(run(('model.linear', 'quantized(bits=8)')))
  with pytest.raises(build.ConfigError, match='config.sample.rule=.*takes 2 models'):
    checks.trained(run(('sample.rule', 'speculative_decoding()')))
  checks.trained(run(('sample.rule', 'speculative_decoding()'), ('sample.tokens', '0')))
