"""What the backward pass keeps changes nothing but memory; the names of tensors are a closed
vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax.nn import embedding
from lmjax.parallel import remat

POLICIES = (
  'full',
  'dots',
  'names(mixer_out)',
  'names(qkv, ffn_up, ffn_hidden, mixer_in, mixer_out, ffn_in, ffn_out)',
)
OFFLOADED = 'names(mixer_out) + offload(layer_in, qkv)'


def loss(params, policy):
  net = _table.model(remat=policy, blocks__block__ffn='swiglu()')
  tokens = _table.batch(np.ones((2, _table.STEPS), int))['tokens']
  return jnp.mean(
    jax.nn.log_softmax(embedding.logits(net.apply(params, tokens, _table.ctx())))[..., 0]
  )


def params():
  return _table.model_params(blocks__block__ffn='swiglu()')


def grad(policy):
  return jax.jit(jax.value_and_grad(lambda p: loss(p, policy)))(params())


def test_every_policy_gives_the_same_loss_and_gradients():
  want = grad('none')
  for policy in POLICIES[:3]:
    _table.trees_close(grad(policy), want, 1e-5)


def test_what_is_offloaded_is_what_is_kept_to_the_bit():
  kept, away = grad('names(mixer_out, layer_in, qkv)'), grad(OFFLOADED)
  for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(away), strict=True):
    np.testing.assert_array_equal(a, b)


def residuals(policy):
  """What the forward pass hands to the backward pass, by memory."""
  out = {}
  _, back = jax.eval_shape(lambda p: jax.vjp(lambda q: loss(q, policy), p), params())
  del back
  jaxpr = jax.make_jaxpr(lambda p: jax.vjp(lambda q: loss(q, policy), p)[1])(params())
  for x in jaxpr.out_avals:
    out[x.memory_space] = out.get(x.memory_space, 0) + x.size * x.dtype.itemsize
  return out


def test_offloaded_tensors_wait_in_the_memory_of_the_host():
  away = residuals(OFFLOADED)
  layers, tokens, head_dim = 2, 2 * _table.STEPS, _table.WIDTH  # heads together: q, k and v
  assert away[jax.memory.Space.Host] == 4 * layers * tokens * (_table.WIDTH + 3 * head_dim)
  assert set(residuals('names(mixer_out, layer_in, qkv)')) == {jax.memory.Space.Device}


def temporaries(policy) -> int:
  """Bytes that the compiled gradient needs besides its arguments and results."""
  fn = jax.jit(jax.grad(lambda p: loss(p, policy)))
  return fn.lower(params()).compile().memory_analysis().temp_size_in_bytes


def test_the_compiled_program_needs_less_memory_where_less_is_kept():
  none, some, full = map(temporaries, ('none', 'names(mixer_out)', 'full'))
  assert max(some, full) < none / 1.5, (full, some, none)


def kept(policy) -> int:
  """Bytes that the forward pass hands to the backward pass."""
  _, back = jax.eval_shape(lambda p: jax.vjp(lambda q: loss(q, policy), p), params())
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(back))


def test_policies_keep_less_in_the_order_that_they_promise():
  sizes = {p: kept(p) for p in ('none', *POLICIES)}
  assert sizes['full'] < sizes['names(mixer_out)'] < sizes[POLICIES[-1]] < sizes['none'], sizes
  assert sizes['full'] < sizes['dots'] < sizes['none'], sizes
  one_tensor = 2 * 2 * _table.STEPS * _table.WIDTH * 4  # layers, rows, tokens, width, bytes
  assert sizes['names(mixer_out)'] - sizes['full'] == one_tensor


def test_every_name_is_tagged_somewhere():
  """A name that no part tags would be accepted and save nothing."""
  jaxpr = str(jax.make_jaxpr(lambda p: loss(p, 'none'))(params()))
  for name in remat.NAMES:
    assert f'name={name}' in jaxpr, name


@pytest.mark.parametrize(
  'text, word',
  [
    ('all', "'all'"),
    ('names(mixer)', "'mixer'"),
    ('names()', 'at least one'),
    ('names(qkv', 'names'),
    ('Full', "'Full'"),
    ('names(mixer_outt)', "did you mean 'mixer_out'"),
    ('offload(layer)', "did you mean 'layer_in'"),
    ('offload()', 'at least one'),
    ('names(qkv, ffn_up) + offload(ffn_up)', 'ffn_up is both kept and offloaded'),
    ('names(qkv) + names(ffn_up)', 'twice'),
    ('full + offload(qkv)', 'names\\(...\\) \\+ offload'),
  ],
)
def test_refusals(text, word):
  with pytest.raises(ValueError, match=word) as e:
    remat.policy(text)
  assert 'config.model.remat' in str(e.value)


def test_both_lists_are_read_in_either_order():
  want = remat.Choice('names', ('mixer_out',), ('layer_in', 'qkv'))
  assert remat.read(OFFLOADED) == want
  assert remat.read('offload(layer_in, qkv)+names(mixer_out)') == want


def test_none_is_no_remat():
  assert (
    remat.policy('none') == (False, None)
    and remat.policy('') == (False, None)
    and remat.policy('full') == (True, None)
  )
  with pytest.raises(AssertionError):
    remat.tag(jnp.ones(1), 'nonsense')
