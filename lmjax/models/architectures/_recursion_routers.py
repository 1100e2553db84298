"""The two routers: how many recursions each token goes through, and what they make of its state.

Both are functions of the architecture's module, called inside its compact `__call__`. Axes: B rows,
T tokens, D width, R recursions.
"""

import jax
import jax.numpy as jnp

from lmjax.models.architectures import _recursion_select as select
from lmjax.nn import params
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact


def mean(x_BT, among_BT):
  """The mean of x where `among` holds."""
  total = jnp.sum(jnp.where(among_BT, x_BT, 0.0))
  return total / jnp.maximum(jnp.sum(among_BT, dtype=jnp.float32), 1.0)


def table(part, name: str, width: int, rounds: int):
  """A router: one column for each recursion, without a bias."""
  fact = Fact(('embed', None), ('embed',), 'hidden')
  made = params.param(part, name, (width, rounds), fact, part.model.scheme)
  return shard.gather(made, fact.names)


def scores(kernel_DR, x_BTD):
  """(B, T, R) in float32."""
  return params.contract(x_BTD.astype(jnp.float32), kernel_DR.astype(jnp.float32), 1, (None,))


def cross_entropy(logits, truth):
  """-log of the probability sigma(logits) gives to the truth."""
  return jax.nn.softplus(jnp.where(truth, -logits, logits))


def gated(part, gate_BT, old, new):
  """h + g Block(h), or h + g (Block(h) - h)."""

  def one(h, y):
    g = select.spread(gate_BT, h).astype(h.dtype)
    return h + g * (y - h if part.adds == 'change' else y)

  return jax.tree.map(one, old, new)


def expert_choice(part, n: int, shares, state, real_BT, ctx, visit):
  """Each recursion takes its share of those that the one before it took.

  Args:
    shares: of each recursion. state: what flows between layers, a tree of (B, T, ...). visit: (r,
      state, chosen_BT, room) -> the state with the block applied at the chosen places, at most
      `room` in a row, or any number where it is None.

  Returns:
    (state, recursions of each token (B, T), report).
  """
  rounds, chosen_BT = len(shares), real_BT
  gating = part.gate == 'router'
  decides = [share < last for share, last in zip(shares, (1, *shares))]
  width = part.stream(state).shape[-1]
  if gating or any(decides):
    kernel = table(part, f'router_{n}', width, rounds)
  if part.auxiliary == 'router' and any(decides):
    second = table(part, f'auxiliary_{n}', width, rounds)
  depth_BT, reports = jnp.zeros(real_BT.shape, jnp.int32), []
  for r, share in enumerate(shares):
    x_BTD = part.stream(state)
    if gating or decides[r]:
      logits_BT = scores(kernel[:, r : r + 1], x_BTD)[..., 0]
    if decides[r]:
      judge_BT = logits_BT
      if part.auxiliary == 'router':
        judge_BT = scores(second[:, r : r + 1], jax.lax.stop_gradient(x_BTD))[..., 0]
      top_BT = select.largest(
        jax.lax.stop_gradient(logits_BT), chosen_BT, select.counts(share, real_BT)
      )
      reports.append(_judged(part, judge_BT, logits_BT, top_BT, chosen_BT, ctx.train))
      chosen_BT = top_BT if ctx.train else chosen_BT & (judge_BT > 0)
    room = select.size(share, real_BT.shape[1]) if ctx.train and share < 1 else None
    new = visit(r, state, chosen_BT, room)
    gate_BT = part.alpha * jax.nn.sigmoid(logits_BT) if gating else jnp.ones(real_BT.shape)
    state = select.blend(chosen_BT, gated(part, gate_BT, state, new), state)
    depth_BT = depth_BT + chosen_BT
  return state, depth_BT, _summed(reports)


def _judged(part, judge_BT, logits_BT, top_BT, among_BT, train: bool):
  """How well a threshold tells the largest, and the losses that teach it."""
  right_BT = (judge_BT > 0) == top_BT
  report = {'accuracy': mean(right_BT.astype(jnp.float32), among_BT)}
  if train:
    missed = mean(cross_entropy(judge_BT, top_BT), among_BT)
    report['loss/router'] = part.auxiliary_loss * missed
    if part.z_loss:
      report['loss/router_z'] = part.z_loss * mean(jnp.square(logits_BT), among_BT)
  return report


def _summed(reports):
  """Reports of recursions as one: losses are summed, the others averaged."""
  out: dict[str, list] = {}
  for report in reports:
    for key, value in report.items():
      out.setdefault(key, []).append(value)
  return {k: sum(v) if k.startswith('loss/') else sum(v) / len(v) for k, v in out.items()}


def token_choice(part, n: int, rounds: int, state, real_BT, ctx, visit):
  """Each token chooses its number of recursions before the first; see `expert_choice`."""
  x_BTD = part.stream(state)
  logits_BTR = scores(table(part, f'router_{n}', x_BTD.shape[-1], rounds), x_BTD)
  p_BTR = jax.nn.softmax(logits_BTR, axis=-1)
  favour_BTR = jax.lax.stop_gradient(p_BTR)
  if part.balance == 'bias':
    bias = part.variable('vars', f'bias_{n}', lambda: jnp.zeros((rounds,), jnp.float32))
    favour_BTR = favour_BTR + bias.value
  choice_BT = jnp.argmax(favour_BTR, axis=-1).astype(jnp.int32)
  hot_BTR = jax.nn.one_hot(choice_BT, rounds, dtype=jnp.float32)
  depth_BT = jnp.where(real_BT, choice_BT + 1, 0)
  new = state
  for r in range(rounds):
    new = visit(r, new, depth_BT > r, None)
  out = gated(part, jnp.sum(p_BTR * hot_BTR, axis=-1), state, new)
  report = {}
  if ctx.train:
    load_R = _means(hot_BTR, real_BT)
    if part.balance == 'bias' and not part.is_initializing():
      bias.value = bias.value + part.bias_rate * jnp.sign(1 / rounds - load_R)
    if part.balance == 'loss':
      report['loss/balance'] = part.balance_loss * rounds * jnp.sum(load_R * _means(p_BTR, real_BT))
    if part.z_loss:
      sizes_BT = jnp.square(jax.nn.logsumexp(logits_BTR, axis=-1))
      report['loss/router_z'] = part.z_loss * mean(sizes_BT, real_BT)
  return select.blend(real_BT, out, state), depth_BT, report


def _means(x_BTR, real_BT):
  """(R,): means over the tokens that are no padding."""
  total_R = jnp.sum(jnp.where(real_BT[..., None], x_BTR, 0.0), axis=(0, 1))
  return total_R / jnp.maximum(jnp.sum(real_BT, dtype=jnp.float32), 1.0)
