"""The delta rule as written, token by token, in float32."""

import jax
import jax.numpy as jnp


def delta_rule(q, k, v, beta, starts, state):
  """See the package."""

  def step(s_BHKV, x):
    q, k, v, beta, start = x
    s_BHKV = jnp.where(start[:, None, None, None], 0.0, s_BHKV)
    u_BHV = beta[..., None] * (v - jnp.einsum('bhk,bhkv->bhv', k, s_BHKV))
    s_BHKV = s_BHKV + k[..., None] * u_BHV[:, :, None]
    return s_BHKV, jnp.einsum('bhk,bhkv->bhv', q, s_BHKV)

  first = lambda x: jnp.moveaxis(x, 1, 0)
  xs = tuple(first(x.astype(jnp.float32)) for x in (q, k, v, beta)) + (first(starts),)
  state, o = jax.lax.scan(step, state, xs)
  return jnp.moveaxis(o, 0, 1).astype(v.dtype), state
