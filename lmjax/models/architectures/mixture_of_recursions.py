"""Mixture-of-Recursions: shared blocks that each token goes through as often as a router says.

Every segment `shared(...)*R` of `config.model.stack` is one set of weights applied in R recursions.
What the paper calls sharing is how the stack is written, here for 6 layers and R = 3 (2 of 4):

  cycle            shared((block, block))*3
  sequence         shared(block)*3 + shared(block)*3
  middle_cycle     block + shared((block, block))*2 + block     (the paper's choice)
  middle_sequence  block + shared(block)*2 + shared(block)*2 + block

`transformer()` on the same stack is the recursive network without routing, with the same names and
shapes of parameters. Each shared segment has a router of its own; the paper routes cycles only.

expert_choice: recursion r takes, of the tokens that recursion r - 1 took, the `capacities[r]` of
the row's tokens (padding left out) with the largest logits z = w_r . h, (R - r + 1) / R by default.

  h <- h + g Block(h),   g = alpha sigma(z)       the others keep h, and never come back

In training only these tokens, gathered in order with their positions and documents, enter the
block, so that a recursion costs its share. The largest of a row depend on its later tokens:
training looks ahead by that much. At evaluation and in decoding a token goes on where sigma(z) >
0.5, which looks at nothing else, and everything is computed and hidden from sight; z is taught to
be such a threshold by a cross-entropy against membership of the largest (`auxiliary='loss'`), or a
second router is that sees sg(h) (`'router'`). A recursion that takes all of those before it decides
nothing. Capacities do not change during training: gathered rows have one size; for a warm-up, start
from a run with larger ones by `init_from`.

token_choice: before the first recursion p = softmax(W h) over the R depths, d = argmax(p + b).

  h^1 = h;  h^(r+1) = Block(h^r) for r <= d;   h <- h + p_d h^(d+1)

Causal as it stands. How many tokens go how deep is only known while it runs, so that all are
computed at every depth: it saves nothing here. `balance='loss'` adds balance_loss R sum_j f_j P_j,
the shares of tokens and the mean probabilities; `'bias'` moves b_j by bias_rate towards depths that
less than 1 / R of the tokens of a training pass chose.

adds='change' puts Block(h) - h in the place of Block(h) in both: with gate='one' and capacities 1
that is the recursive network. kv='recursion_wise': a recursion attends among the tokens it takes.
kv='share_first': tokens attend to the keys and values that the first recursion made of all tokens,
which makes one cache instead of R. Mixers must know other tokens by positions and segments alone.

Bae et al., 2025 (arXiv:2507.10524); routers, gates and default coefficients follow its released
code, which evaluates by the largest of the row and here is not followed.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.models.architectures import _recursion_kv as kv_lib
from lmjax.models.architectures import _recursion_routers as routers
from lmjax.models.architectures import _recursion_select as select
from lmjax.nn import stack
from lmjax.nn.dropout import dropout
from lmjax.registry import register

ONLY = {
  'expert_choice': ('capacities', 'gate', 'alpha', 'auxiliary', 'auxiliary_loss'),
  'token_choice': ('balance', 'balance_loss', 'bias_rate'),
}


@register('architecture')
class MixtureOfRecursions(nn.Module):
  """Embed, a stack with recursed segments, norm."""

  model: Any
  router: Literal['expert_choice', 'token_choice'] = 'expert_choice'
  kv: Literal['recursion_wise', 'share_first'] = 'recursion_wise'
  adds: Literal['output', 'change'] = 'output'
  capacities: tuple | None = None
  gate: Literal['router', 'one'] = 'router'
  alpha: float = 0.1
  auxiliary: Literal['loss', 'router'] = 'loss'
  auxiliary_loss: float = 1e-3
  balance: Literal['loss', 'bias'] = 'loss'
  balance_loss: float = 0.1
  bias_rate: float = 1e-3
  z_loss: float = 0.0

  @staticmethod
  def check(**given):
    router = given['router']
    for owner, keys in ONLY.items():
      for key in keys:
        if owner != router and given[key] != getattr(MixtureOfRecursions, key):
          raise ValueError(f'{key}={given[key]!r} is an argument of {owner}, not of {router}')
    _check_capacities(given['capacities'], given['kv'])
    if given['alpha'] <= 0:
      raise ValueError(f'alpha={given["alpha"]}: a positive factor of the gate is expected')
    for key in ('auxiliary_loss', 'balance_loss', 'bias_rate', 'z_loss'):
      if given[key] < 0:
        raise ValueError(f'{key}={given[key]}: at least 0 is expected')
    if given['gate'] == 'one' and given['auxiliary'] == 'router':
      raise ValueError(
        'gate="one" and auxiliary="router" leave the router that chooses without a gradient; '
        'change one of them'
      )

  @nn.nowrap
  def stream(self, state):
    """(B, T, D) of what flows between layers."""
    m = self.model
    return m.block(m.segments[0].pattern[0])(parent=None).leave(state)

  @nn.nowrap
  def recursed(self) -> list[int]:
    """The segments with a router. Raises ValueError or Unsupported where the stack suits none."""
    m = self.model
    if not any(s.shared for s in m.segments):
      raise ValueError(
        'config.model.architecture=mixture_of_recursions(...): config.model.stack has no shared '
        'segment to repeat, such as "block + shared((block, block))*3 + block"'
      )
    found = [n for n, s in enumerate(m.segments) if s.shared and s.repeats > 1]
    if not found and self.router == 'token_choice':
      raise ValueError(
        'config.model.architecture: token_choice has no depth to choose where every shared segment '
        'of config.model.stack runs once; repeat one, as in shared(block)*3, or use expert_choice'
      )
    for n in found:
      self._suits(m.segments[n])
    return found

  @nn.nowrap
  def _suits(self, segment):
    if self.capacities is not None and len(self.capacities) != segment.repeats:
      raise ValueError(
        f'config.model.architecture: {len(self.capacities)} capacities for a segment of '
        f'config.model.stack that runs {segment.repeats} times; one for each is expected'
      )
    for name in segment.pattern:
      mixer = self.model.mixer(name)
      where = f'config.model.blocks.{name}.mixer={mixer}'
      if mixer.fact('recurrent'):
        raise kinds.Unsupported(
          f'{where} keeps a state, which cannot pass by tokens that leave; mixture_of_recursions '
          'needs attention in its shared blocks'
        )
      if not mixer.fact('segments'):
        raise kinds.Unsupported(
          f'{where} cannot leave tokens out, which mixture_of_recursions needs of its shared blocks'
        )
      if self.kv == 'share_first' and not mixer.fact('cache'):
        raise kinds.Unsupported(
          f'{where} has no cache, through which kv="share_first" shows keys; use '
          'kv="recursion_wise" or another mixer'
        )

  @nn.nowrap
  def costs(self) -> dict[int, tuple[tuple[float, float], ...]]:
    """Of each recursed segment, by recursion: the shares of tokens that a training step computes,
    as queries and as keys.
    """
    out = {}
    for n in self.recursed():
      rounds = self.model.segments[n].repeats
      shares = select.shares(self.capacities, rounds)
      if self.router == 'token_choice':
        shares = (1,) * rounds
      keys = (1,) * rounds if self.kv == 'share_first' else shares
      out[n] = tuple((float(q), float(k)) for q, k in zip(shares, keys))
    return out

  @nn.nowrap
  def passes(self, steps, source):
    """Upper bounds where keys and values of the first recursion serve all."""
    del source
    return [kinds.Pass((), self.model, 1.0, steps, self.costs())]

  @nn.compact
  def __call__(self, tokens_BT, ctx, cache=None):
    m, recursed = self.model, self.recursed()
    ctx = ctx.replace(scheme=m.scheme)
    x, unembed, bias = m.embed(name='embed')(tokens_BT, ctx)
    x = m.position(name='position')(x, ctx)
    if m.embed_norm is not None:
      x = m.embed_norm(name='embed_norm')(x, ctx)
    x = dropout(self, x, m.dropout, ctx)
    state = m.block(m.segments[0].pattern[0])(parent=None).enter(x)
    offset, caches, reports = 0, [], []
    for n, s in enumerate(m.segments):
      run = self._recurse if n in recursed else self._plain
      state, out, report = run(n, state, None if cache is None else cache[n], offset, ctx)
      caches.append(out)
      reports += report
      offset += s.repeats * len(s.pattern)
    x = self.stream(state)
    if m.final_norm is not None:
      x = m.final_norm(name='final_norm')(x, ctx)
    cache = None if cache is None else tuple(caches)
    aux = stack.combine(reports)
    return kinds.Outputs(x, unembed, bias, m.scheme.init.logit_scale(), m.cap, cache, aux)

  def _plain(self, n, state, cache, offset, ctx):
    return stack.segment(self.model, n, state, cache, offset, ctx)

  def _recurse(self, n, state, cache, offset, ctx):
    """One recursed segment: (state, its caches, reports)."""
    segment, reports = self.model.segments[n], []
    blocks = stack.group(self.model, cache is not None, looped=False)
    group = blocks(segment.pattern, self.model, name=f'segment_{n}')
    keys = kv_lib.POLICIES[self.kv](cache)
    start, segments_BT = state, ctx.segments_BT
    if segments_BT is None:
      segments_BT = jnp.ones_like(ctx.positions_BT)

    def visit(r, state, chosen_BT, room):
      seen, inputs = ctx.replace(segments_BT=jnp.where(chosen_BT, segments_BT, 0)), state
      if room is not None:
        places_BK = select.places(chosen_BT, room)
        seen = select.context(ctx, places_BK)
        inputs = jax.tree.map(lambda a: select.take(a, places_BK), state)
      depth = jnp.asarray(offset + r * len(segment.pattern))
      new, (out, report) = group(inputs, keys.given(r, len(segment.pattern)), depth, seen)
      keys.returned(r, out)
      reports.extend(report)
      if room is not None:
        return jax.tree.map(lambda a, b: select.put(a, places_BK, b), state, new)
      return select.blend(chosen_BT, new, state)

    real_BT = segments_BT > 0
    if self.router == 'token_choice':
      shares = segment.repeats
      choose = routers.token_choice
    else:
      shares = select.shares(self.capacities, segment.repeats)
      choose = routers.expert_choice
    state, depth_BT, report = choose(self, n, shares, state, real_BT, ctx, visit)
    if self.is_initializing():
      _refuse_state(
        stack.Group(segment.pattern, self.model, parent=None), group, start, offset, ctx
      )
    self.sow('intermediates', f'depth_{n}', depth_BT)
    return state, keys.result(), reports + [_told(report, depth_BT, real_BT, segment.repeats)]

  @nn.nowrap
  def init_cache(self, kind, batch, length):
    recursed = self.recursed()
    caches = list(stack.init_cache(self.model, kind, batch, length))
    for n in recursed:
      if self.kv == 'share_first':  # one for all recursions
        caches[n] = jax.tree.map(lambda a: a[:1], caches[n])
    return tuple(caches)


def _check_capacities(capacities, kv: str):
  if capacities is None:
    return
  real = lambda c: isinstance(c, (int, float)) and not isinstance(c, bool)
  if not capacities or not all(real(c) and 0 < c <= 1 for c in capacities):
    raise ValueError(
      f'capacities={capacities}: for each recursion a share of the tokens, above 0 and at most 1, '
      'is expected'
    )
  if any(b > a for a, b in zip(capacities, capacities[1:])):
    raise ValueError(
      f'capacities={capacities}: a recursion takes of those that the one before it took, so that '
      'none may be larger than the one before'
    )
  if kv == 'share_first' and capacities[0] != 1:
    raise ValueError(
      f'capacities={capacities}: kv="share_first" needs keys of all tokens from the first '
      'recursion, so that its capacity must be 1'
    )


def _refuse_state(blocks, made, x, offset, ctx):
  """Blocks that are run several times with one set of variables may have none that a training pass
  changes: its state would count rounds, and mix their statistics.
  """
  variables, names = dict(made.variables), ', '.join(blocks.pattern)
  what = 'a state of backward passes' if 'backward' in variables else None
  if what is None and 'vars' in variables:
    rest = {k: v for k, v in variables.items() if k != 'vars'}

    def after(vars, x):
      rngs = {'dropout': jax.random.key(0)}
      given = {**rest, 'vars': vars}, x, None, jnp.asarray(offset), ctx.replace(train=True)
      return blocks.apply(*given, mutable=['vars'], rngs=rngs)[1].get('vars', {})

    traced = jax.make_jaxpr(after)(variables['vars'], x).jaxpr
    kept = zip(traced.outvars, traced.invars)
    what = None if all(a is b for a, b in kept) else 'variables that training changes'
  if what is not None:
    raise kinds.Unsupported(
      f'config.model.blocks: {names} keeps {what}, which blocks that mixture_of_recursions repeats '
      'cannot have'
    )


def _told(report, depth_BT, real_BT, rounds: int):
  """The report of a segment with the depths of its tokens."""
  share = lambda x_BT: routers.mean(x_BT.astype(jnp.float32), real_BT)
  told = {f'recursion/{k}' if not k.startswith('loss/') else k: v for k, v in report.items()}
  told |= {f'recursion/share_{d}': share(depth_BT == d) for d in range(rounds + 1)}
  return told | {'recursion/depth': share(depth_BT)}
