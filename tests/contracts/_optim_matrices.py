"""Rows and float64 references of optimizer parts that turn, project or quantize: see `_optim.py`.

`rows(nested)` gives the arguments of `Row` by part; nested(part) is the reference of an inner part.
"""

import jax
import numpy as np

from _optim import FACTS, HIDDEN, MATRICES, SHAPES, SIZES, mean, pieces

TOTAL = sum(SIZES.values())
LAYERS = {k: sum(1 for _ in pieces(k, np.empty(s))) for k, s in SHAPES.items()}


def per_parameter(**bytes_of) -> float:
  """Bytes of each layer's tensor by name -> bytes a parameter of all."""
  return sum(n * LAYERS[k] for k, n in bytes_of.items()) / TOTAL


def sides(k: str) -> tuple[int, int]:
  """(in, out) of one layer's matrix; all of these store the inputs first."""
  first, second = (n for n, name in zip(SHAPES[k], FACTS[k].names) if name not in STACKS)
  return first, second


STACKS = ('layers', 'expert')


def low(rank: int, moments: int, basis: bool, more: int = 0) -> float:
  """State of a projected model in float32, everything else with two moments."""
  out = dict(place=8 * 32, gains=8 * 8)
  for k in HIDDEN:
    short, long = sorted(sides(k))
    out[k] = 4 * (rank * long * moments + short * rank * basis) + more
  return per_parameter(**out)


# ------------------------------------------------------- quantized state


def dynamic(signed: bool):
  """The map as its paper's library builds it: means of neighbours on a line from 0.1 to 1."""
  found = [0.0, 1.0]
  for i in range(7):
    line = np.linspace(0.1, 1, (2**i if signed else 2 ** (i + 1)) + 1)
    values = (line[1:] + line[:-1]) / 2 * 10.0 ** (i - 6)
    found += [*values, *(-values if signed else [])]
  return np.sort(found)


def requantized(x, block: int):
  flat = x.reshape(-1)
  for start in range(0, flat.size, block):
    part = flat[start : start + block]
    top, signed = np.abs(part).max(), bool((part < 0).any())
    if top == 0:
      continue
    table = dynamic(signed)
    codes = np.argmin(np.abs(part[:, None] / top - table), axis=1)
    if not signed:
      codes = np.maximum(codes, part > 0)
    flat[start : start + block] = table[codes] * top
  return flat.reshape(x.shape)


def ref_eight_bit(a, inner):
  def step(t, g, p, s):
    out = inner(t, g, p, s)

    def stored(k, x):
      x = np.array(x)
      for where, piece in pieces(k, x):
        if piece.size >= a['min_size']:
          x[where] = requantized(np.array(piece), a['block'])
      return x

    for k in s:
      if k != 'place':
        s[k] = tuple(stored(k, x) for x in s[k]) if isinstance(s[k], tuple) else stored(k, s[k])
    return out

  return step


# ------------------------------------------------------- projections


def views(k, x):
  """(index, short-first matrix, what brings it back) of each layer."""
  for where, piece in pieces(k, x):
    if piece.ndim == 1 or piece.shape[0] <= piece.shape[1]:
      yield where, piece, lambda y: y
    else:
      yield where, piece.T, lambda y: y.T


def projected(a, k) -> bool:
  return k in HIDDEN and a['rank'] <= min(sides(k))


def leading(s, rank):
  u = np.linalg.svd(s, full_matrices=False)[0][:, :rank]
  return u * np.sign(u[np.abs(u).argmax(0), np.arange(rank)])


def ref_galore(a, inner):
  def step(t, g, p, s):
    down, bases = {}, s.setdefault('bases', {})
    for k, x in g.items():
      if not projected(a, k):
        down[k] = x
        continue
      low = []
      for n, (_, y, _) in enumerate(views(k, x)):
        if (t - 1) % a['gap'] == 0:
          bases[k, n] = leading(y, a['rank'])
        low.append(bases[k, n].T @ y)
      down[k] = np.stack(low)
    moved = inner(t, down, p, s.setdefault('inner', {}))
    out = {}
    for k, x in g.items():
      out[k] = np.array(moved[k]) if not projected(a, k) else np.empty_like(x)
      for n, (where, _, back) in enumerate(views(k, x)):
        if projected(a, k):
          out[k][where] = back(a['scale'] * bases[k, n] @ moved[k][n])
    return out

  return step


def adam(a, g, s):
  m, v = mean(s, 'm', a['b1'], g), mean(s, 'v', a['b2'], g * g)
  return m / (np.sqrt(v) + a['eps'])


def by_matrix(a, one):
  """A step of one(t, short-first gradient, own dictionary) for hidden matrices, Adam for the rest;
  the bias of Adam's moments is taken out in the end.
  """

  def step(t, g, p, s):
    factor = np.sqrt(1 - a['b2'] ** t) / (1 - a['b1'] ** t)
    out = {}
    for k, x in g.items():
      out[k] = np.empty_like(x)
      for n, (where, y, back) in enumerate(views(k, x)):
        mine = s.setdefault((k, n), {})
        out[k][where] = factor * back((one(t, y, mine) if projected(a, k) else adam(a, y, mine)))
    return out

  return step


def limited(a, x, s):
  size = np.sqrt(np.sum(x * x))
  most = a['growth'] * (s['norm'] + 1e-8) if 'norm' in s else np.inf
  s['norm'] = min(size, most)
  return x * s['norm'] / size


def ref_fira(a):
  def one(t, g, s):
    if (t - 1) % a['gap'] == 0:
      s['P'] = leading(g, a['rank'])
    r = s['P'].T @ g
    n = adam(a, r, s)
    phi = np.linalg.norm(n, axis=0) / (np.linalg.norm(r, axis=0) + 1e-8)
    share = 1.0 if a['leaves'] == 'all' else a['scale']
    rest = limited(a, (g - share * s['P'] @ r) * phi, s)
    return a['scale'] * s['P'] @ n + rest

  return by_matrix(a, one)


def ref_apollo(a):
  def one(t, g, s):
    key = jax.random.key(a['seed'], impl='threefry2x32')
    key = jax.random.fold_in(key, (t - 1) // a['gap'])
    P = np.float64(jax.random.normal(key, (g.shape[0], a['rank']))) / np.sqrt(a['rank'])
    r = P.T @ g
    n = adam(a, r, s)
    axis = 0 if a['scaling'] == 'channel' else None
    size = np.linalg.norm(n, axis=axis) / (np.linalg.norm(r, axis=axis) + 1e-8)
    return np.sqrt(a['alpha']) * limited(a, g * size, s)

  return by_matrix(a, one)


# ------------------------------------------------------- eigenbases


def eigenbasis(s):
  """Largest first; where there is no gradient, what completes the rest."""
  size, q = np.linalg.eigh(s)
  return np.linalg.qr(q[:, ::-1] * (size[::-1] > 1e-6 * size[-1]))[0]


def ref_soap(a):
  def one(k, t, g, s):
    turned = [k in MATRICES and n <= a['max_dim'] for n in g.shape]
    stats = [mean(s, i, a['b2'], y @ y.T) if on else 0 for i, on, y in zip('LR', turned, (g, g.T))]
    if t == 1:
      s['Q'] = [eigenbasis(x) if on else np.eye(n) for on, x, n in zip(turned, stats, g.shape)]
      return 0 * g
    left, right = s['Q']
    m = left.T @ mean(s, 'm', a['b1'], g) @ right
    v = mean(s, 'v', a['b2'], (left.T @ g @ right) ** 2)
    factor = np.sqrt(1 - a['b2'] ** (t - 1)) / (1 - a['b1'] ** (t - 1))
    if (t - 1) % a['every'] == 0:
      for i in (0, 1):
        if turned[i]:
          q = s['Q'][i]
          order = np.argsort(-np.diag(q.T @ stats[i] @ q), kind='stable')
          s['v'] = s['v'][order] if i == 0 else s['v'][:, order]
          s['Q'] = list(s['Q'])
          s['Q'][i] = np.linalg.qr(stats[i] @ q[:, order])[0]
    return factor * left @ (m / (np.sqrt(v) + a['eps'])) @ right.T

  def step(t, g, p, s):
    out = {}
    for k, x in g.items():
      out[k] = np.empty_like(x)
      for n, (where, y) in enumerate(pieces(k, x)):
        flat = y.reshape(len(y), -1)
        out[k][where] = one(k, t, flat, s.setdefault((k, n), {})).reshape(y.shape)
    return out

  return step


# ------------------------------------------------------- radial parts, averages


def ref_radial(a, direction):
  def project(k, g, p, w):
    for vectors in ((lambda x: x) if k == 'place' else (lambda x: x.T), lambda x: x.reshape(1, -1)):
      gs, ws = vectors(g), vectors(w)
      sizes = np.linalg.norm(gs, axis=1) * np.linalg.norm(ws, axis=1)
      cos = np.abs(np.sum(gs * ws, axis=1)) / np.maximum(sizes, a['eps'])
      if cos.max() < a['delta'] / np.sqrt(ws.shape[1]):
        u = ws / (np.linalg.norm(ws, axis=1, keepdims=True) + a['eps'])
        ps = vectors(p)
        ps = ps - u * np.sum(u * ps, axis=1, keepdims=True)
        return (ps if k == 'place' else ps.T).reshape(p.shape) if len(ps) > 1 else ps.reshape(
          p.shape
        ), a['wd_ratio']
    return p, 1.0

  def step(t, g, p, s):
    out = {k: np.array(x) for k, x in direction(t, g, p, s).items()}
    rate = dict(a['decay'].args)['rate'] if a['decay'] else 0.0
    for k, x in out.items():
      for where, piece in pieces(k, x):
        if k in MATRICES:
          new, ratio = project(k, g[k][where], piece, p[k][where])
          x[where] = new + (ratio * rate * p[k][where] if k in HIDDEN else 0)
    return out

  return step


def ref_schedule_free(a, inner):
  """By the three sequences themselves, with a rate of 1."""

  def step(t, g, p, s):
    d = inner(t, g, p, s.setdefault('inner', {}))
    size = min(1.0, t / a['warmup']) if a['warmup'] else 1.0
    w = t ** a['r'] * size ** a['power']
    s['total'] = s.get('total', 0.0) + w
    out = {}
    for k in g:
      old, z = s.get(k, 2 * (np.zeros_like(g[k]),))
      z = z - size * d[k]
      x = old + w / s['total'] * (z - old)
      out[k], s[k] = old - x, (x, z)
    return out

  return step


def ref_rmsprop(a):
  return lambda t, g, p, s: {
    k: x / (np.sqrt(mean(s, k, a['b2'], x * x) / (1 - a['b2'] ** t)) + a['eps'])
    for k, x in g.items()
  }


def rows(nested) -> dict[str, dict]:
  adam = lambda a: nested('adam')({'nesterov': False, **a})
  sgd = lambda a: nested('sgd')(a)
  inner = lambda reference: lambda a: reference(a, nested(a['inner']))
  turned = lambda k, most: sum(n * n for n in sides(k) if n <= most)
  soap = lambda most: per_parameter(
    gains=8 * 8, **{k: 8 * 32 + 8 * turned(k, most) for k in MATRICES}
  )
  eight = lambda n, scales: per_parameter(
    place=4 * n * 32, gains=n * (8 + scales(8)), **{k: n * (32 + scales(32)) for k in HIDDEN}
  )
  return {
    'eight_bit': dict(
      specs={
        'eight_bit()': 8,
        'eight_bit(min_size=1)': eight(2, lambda n: 4),
        'eight_bit(inner=lion(), block=12, min_size=32)': per_parameter(
          place=128, gains=32, **{k: 32 + 3 * 4 for k in HIDDEN}
        ),
        'eight_bit(inner=sgd(momentum=0.9), block=8, min_size=8)': eight(1, lambda n: n // 2),
      },
      reference=inner(ref_eight_bit),
      bad={'eight_bit(block=0)': 'block', 'eight_bit(min_size=0)': 'min_size'},
    ),
    'adamp': dict(
      specs={
        'adamp()': 8,
        'adamp(b1=0.5, b2=0.9, eps=1e-3, delta=2.0, wd_ratio=0.5, decay=decay(rate=0.1))': 8,
      },
      reference=lambda a: ref_radial(a, adam(a)),
      bad={
        'adamp(b1=1.0)': 'b1',
        'adamp(b2=1.0)': 'b2',
        'adamp(eps=0.0)': 'eps',
        'adamp(delta=0.0)': 'delta',
        'adamp(wd_ratio=1.5)': 'wd_ratio',
      },
      moves=lambda a: a['decay'] is not None,
    ),
    'sgdp': dict(
      specs={
        'sgdp()': 4,
        'sgdp(momentum=0.5, nesterov=True, eps=1e-3, delta=2.0, wd_ratio=0.5)': 4,
      },
      reference=lambda a: ref_radial(a, sgd(a)),
      bad={
        'sgdp(momentum=1.0)': 'momentum',
        'sgdp(eps=-1.0)': 'eps',
        'sgdp(delta=-0.1)': 'delta',
        'sgdp(wd_ratio=-0.5)': 'wd_ratio',
        'sgdp(decay=schedule_free())': 'decay',
      },
      rounding=10,  # what is left of entries that the projection nearly cancels
    ),
    'galore': dict(
      specs={
        'galore()': 8,
        'galore(rank=2, gap=2)': low(2, 2, True),
        'galore(inner=lion(), rank=4, gap=1, scale=1.0)': per_parameter(
          place=128, gains=32, **{k: 4 * (4 * 8 + 4 * 4) for k in HIDDEN}
        ),
      },
      reference=inner(ref_galore),
      bad={
        'galore(rank=0)': 'rank',
        'galore(gap=0)': 'gap',
        'galore(scale=0.0)': 'scale',
        'galore(inner=sophia_g())': 'inner',
      },
      toy=('{}', 0.5),  # a quarter of it reaches projected matrices
      scalars=2,
    ),
    'fira': dict(
      specs={
        'fira()': 8,
        'fira(rank=2, gap=2, growth=1.5)': low(2, 2, True, 4),
        'fira(rank=1, b1=0.5, b2=0.9, eps=0.1, scale=1.0, leaves="scaled")': low(1, 2, True, 4),
      },
      reference=ref_fira,
      bad={
        'fira(rank=-1)': 'rank',
        'fira(gap=0)': 'gap',
        'fira(scale=-1.0)': 'scale',
        'fira(growth=0.9)': 'growth',
        'fira(b1=1.0)': 'b1',
        'fira(b2=1.0)': 'b2',
        'fira(eps=0.0)': 'eps',
        'fira(leaves="none")': 'leaves',
      },
    ),
    'apollo': dict(
      specs={
        'apollo()': 8,
        'apollo(rank=2, gap=2, growth=1.5, seed=7)': low(2, 2, False, 4),
        'apollo(rank=1, scaling="tensor", alpha=128.0, b1=0.5, b2=0.9, eps=1e-3)': low(
          1, 2, False, 4
        ),
      },
      reference=ref_apollo,
      bad={
        'apollo(rank=0)': 'rank',
        'apollo(scaling="row")': 'scaling',
        'apollo(alpha=0.0)': 'alpha',
        'apollo(gap=-1)': 'gap',
        'apollo(growth=0.5)': 'growth',
        'apollo(b1=1.0)': 'b1',
        'apollo(b2=1.0)': 'b2',
        'apollo(eps=0.0)': 'eps',
        'apollo(seed=-1)': 'seed',
      },
    ),
    'soap': dict(
      specs={
        'soap()': soap(8),
        'soap(b1=0.5, b2=0.9, eps=1e-3, every=2, max_dim=4)': soap(4),
        'soap(max_dim=3)': 8,
      },
      reference=ref_soap,
      bad={
        'soap(b1=1.0)': 'b1',
        'soap(b2=1.0)': 'b2',
        'soap(eps=0.0)': 'eps',
        'soap(every=0)': 'every',
        'soap(max_dim=0)': 'max_dim',
      },
      rounding=1000,  # squared gradients of very different size, decomposed
    ),
    'rmsprop': dict(
      specs={'rmsprop()': 4, 'rmsprop(b2=0.5, eps=0.1)': 4},
      reference=ref_rmsprop,
      bad={'rmsprop(b2=1.0)': 'b2', 'rmsprop(eps=0.0)': 'eps'},
    ),
    'schedule_free': dict(
      specs={
        'schedule_free()': 8,
        'schedule_free(inner=sgd(), b1=0.5, warmup=2, r=1.0, power=1.0)': 4,
        'schedule_free(inner=adam(b1=0.5), warmup=5)': 12,
      },
      reference=inner(ref_schedule_free),
      full=True,
      bad={
        'schedule_free(b1=1.0)': 'b1',
        'schedule_free(warmup=-1)': 'warmup',
        'schedule_free(r=-1.0)': 'r',
        'schedule_free(power=-1.0)': 'power',
        'schedule_free(inner=schedule_free())': 'inner',
      },
      scalars=3,
    ),
  }
