"""What `by_layer` says of each layer, against a plain loop over layers one at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax import kinds
from lmjax import lm as lm_lib
from lmjax import registry
from lmjax.evals import by_layer
from lmjax.nn import embedding

LENGTH, VOCAB = 16, 12
MEGABYTE = 'megabyte(patch=4, local_width=16, local_stack="block")'
TEXT = ''.join(np.random.default_rng(0).choice(list('abcdefgh'), 3 * LENGTH + 9))
HOW = dict(
  length=LENGTH,
  vocab=VOCAB,
  stack='(local, full)*2',
  blocks__full__mixer='gqa(head_dim=8, kv_heads=2)',
  blocks__local__mixer='gqa(head_dim=8, window=3)',
)


class Letters:
  """a-h are 0 ... 7, bos 10, eos 11."""

  vocab_size, bos, eos, pad, mask = VOCAB, 10, 11, None, None

  def encode(self, text):
    return np.array(['abcdefgh'.index(c) for c in text], np.int32)


def model(**how):
  return lm_lib.LM(_table.model(**how), _table.model_params(**how), Letters(), length=LENGTH)


def measured(tmp_path, lm, **arguments):
  """{(measure, layer): (value, standard error)}, and what the names say of the protocol."""
  (tmp_path / 'text.txt').write_text(TEXT)
  given = ''.join(f', {k}={v}' for k, v in arguments.items())
  return unnamed(registry.make('eval', f'by_layer(path="{tmp_path}/text.txt"{given})')().run(lm))


def unnamed(scores):
  out, said = {}, set()
  for s in scores:
    name, _, how = s.name.partition('[')
    measure, _, layer = name.partition('/')
    out[measure, int(layer)] = s.value, s.stderr
    said.add(how)
  assert len(said) == 1
  return out, said.pop()


def by_hand(lm, rows_RT):
  """A function of the layer that is left out, -1 for none, from 0: (nats (R, T), streams before and
  behind every layer, gradient of the mean loss by layer).
  """
  net, params = lm.architecture, lm.variables['params']
  m = net.model
  ctx = kinds.Ctx(
    jnp.broadcast_to(jnp.arange(rows_RT.shape[1] - 1), rows_RT[:, 1:].shape),
    jnp.ones(rows_RT[:, 1:].shape, jnp.int32),
    scheme=m.scheme,
  )
  order = [
    (f'segment_{n}', f'{i}_{name}', r, name)
    for n, s in enumerate(m.segments)
    for r in range(s.repeats)
    for i, name in enumerate(s.pattern)
  ]
  own = [jax.tree.map(lambda a, r=r: a[r], params[seg][key]) for seg, key, r, _ in order]

  def f(own, left_out):
    call = lambda part, p, *a: part(parent=None).apply({'params': p}, *a)
    x, unembed, bias = call(m.embed, params['embed'], rows_RT[:, :-1], ctx)
    x, streams = m.position(parent=None).apply({'params': {}}, x, ctx), []
    streams.append(x)
    for depth, (p, (_, _, _, name)) in enumerate(zip(own, order)):
      y, _, _ = call(m.block(name), p, x, ctx.replace(depth=depth), None)
      x = jnp.where(depth == left_out, x, y)
      streams.append(x)
    x = call(m.final_norm, params['final_norm'], x, ctx)
    z = embedding.logits(
      kinds.Outputs(x, unembed, bias, m.scheme.init.logit_scale(), m.cap, None, {})
    )
    nats = -jnp.take_along_axis(jax.nn.log_softmax(z), rows_RT[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(nats), (nats, streams)

  norm = lambda tree: np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(tree)))
  compiled = jax.jit(jax.value_and_grad(f, has_aux=True))

  def found(left_out=-1):
    (_, (nats, streams)), slopes = compiled(own, left_out)
    return np.float64(nats), [np.float64(x) for x in streams], [norm(s) for s in slopes]

  return found


@pytest.mark.parametrize(
  'residual',
  [
    'mix_ln(alpha=0.4)',
    *(
      pytest.param(r, marks=pytest.mark.slow) for r in ('pre()', 'layernorm_scaling()', 'peri_ln()')
    ),
  ],
)
def test_equals_a_plain_loop_over_layers(tmp_path, residual):
  each = {f'blocks__{b}__residual': residual for b in ('full', 'local')}
  lm = model(**HOW, **each)
  found, how = measured(tmp_path, lm)
  assert how == 'file=text, tokens=48, length=16, prefix=bos]'
  ids = Letters().encode(TEXT)
  rows = np.stack([ids[i : i + LENGTH + 1] for i in (0, 16, 32)])
  plain = by_hand(lm, rows)
  nats, streams, slopes = plain()
  close = lambda got, want: np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-6)
  for layer, x in enumerate(streams):
    close(found['variance', layer][0], x.var(-1).mean())
  for layer, (x, y) in enumerate(zip(streams, streams[1:]), 1):
    close(found['largest', layer][0], np.abs(y).max())
    cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    close(found['angle', layer][0], np.arccos(cosine).mean() / np.pi)
    rise = (plain(layer - 1)[0] - nats).mean(1)
    close(found['removal', layer], (rise.mean(), rise.std(ddof=1) / np.sqrt(3)))
    close(found['gradient', layer][0], slopes[layer - 1])
  assert len(found) == 5 + 4 * 4


@pytest.mark.slow
def test_rows_of_padding_and_the_number_of_tokens(tmp_path, monkeypatch):
  """Rows are run two at a time, so that the last batch of three has one of padding."""
  lm = model(**HOW)
  want, _ = measured(tmp_path, lm)
  monkeypatch.setattr(by_layer, 'BATCH_TOKENS', 2 * LENGTH + 2)
  got, _ = measured(tmp_path, lm)
  for key in want:
    np.testing.assert_allclose(got[key][0], want[key][0], rtol=1e-4, atol=1e-7, err_msg=str(key))
  few, how = measured(tmp_path, lm, tokens=20)
  assert 'tokens=16,' in how and few['removal', 1][1] is None


def test_layers_that_share_have_no_gradient_of_their_own(tmp_path):
  found, _ = measured(tmp_path, model(**HOW | dict(stack='full + shared(local)*2 + full')))
  assert [layer for name, layer in found if name == 'gradient'] == [1, 4]
  assert [layer for name, layer in found if name == 'removal'] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['auto', 'explicit'])
def test_a_mesh_changes_nothing(tmp_path, mode):
  want, _ = measured(tmp_path, model(**HOW))
  with jax.set_mesh(_meshes.make(mode, data=4, tensor=2)):
    got, _ = measured(tmp_path, model(**HOW))
  for key in want:
    np.testing.assert_allclose(got[key][0], want[key][0], rtol=1e-4, atol=1e-6, err_msg=str(key))


@pytest.mark.parametrize(
  'how, said',
  [
    (HOW | dict(blocks__full__mixer='gqa(head_dim=8, causal=False)'), 'looks ahead'),
    (dict(architecture=MEGABYTE, length=LENGTH, vocab=VOCAB, width=32), 'also has local'),
  ],
)
def test_models_it_cannot_look_into(tmp_path, how, said):
  with pytest.raises(kinds.Unsupported, match=said):
    measured(tmp_path, model(**how))


def test_texts_and_arguments_that_are_refused(tmp_path):
  (tmp_path / 'one.txt').write_text('a')
  part = registry.make('eval', f'by_layer(path="{tmp_path}/one.txt")')()
  with pytest.raises(ValueError, match='one.txt has 1 tokens, at least 2 are expected'):
    part.run(model(**HOW))
  for wrong in ('by_layer(path="none.txt")', f'by_layer(path="{tmp_path}/one.txt", tokens=0)'):
    with pytest.raises(ValueError, match='no such file|tokens=0: a positive number'):
      registry.make('eval', wrong)()
