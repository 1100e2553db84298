"""The parameters on which optimizer parts are tried, and float64 references of the longer ones.

A reference takes the part's arguments and returns step(t, g, p, s) -> update, dictionaries of
float64 arrays; t = 1, 2, ...; s is a dictionary that it keeps between steps.
"""

import numpy as np

from lmjax.parallel.facts import Fact

FACTS = {
  'matrix': Fact(('embed', 'mlp'), ('embed',)),
  'place': Fact(('position', 'embed'), ('position',), 'position'),
  'inner_layers': Fact(('embed', 'layers', 'mlp'), ('embed',)),
  'experts': Fact(('layers', 'expert', 'embed', 'mlp'), ('embed',)),
  'gains': Fact(('layers', 'embed'), (), 'norm'),
}
SHAPES = {
  'matrix': (8, 4),
  'place': (4, 8),
  'inner_layers': (8, 3, 4),
  'experts': (2, 2, 8, 4),
  'gains': (3, 8),
}
STACKED = {'inner_layers': (1,), 'experts': (0, 1), 'gains': (0,)}
HIDDEN = ('matrix', 'inner_layers', 'experts')
MATRICES = (*HIDDEN, 'place')
TENSORS = 12  # single layers counted
SIZES = {k: int(np.prod(s)) for k, s in SHAPES.items()}


def share(*names: str) -> float:
  """The share of the parameters with these names."""
  return sum(SIZES[k] for k in names) / sum(SIZES.values())


def pieces(name, x):
  """The layers of a stacked array as (index, slice); the array itself where it is not stacked."""
  axes = STACKED.get(name, ())
  for index in np.ndindex(*(x.shape[i] for i in axes)):
    where = [slice(None)] * x.ndim
    for axis, i in zip(axes, index):
      where[axis] = i
    yield tuple(where), x[tuple(where)]


def by_tensor(one):
  """A step that applies one(t, g, s) to each layer's tensor, s being its own dictionary."""

  def step(t, g, p, s):
    out = {}
    for k, x in g.items():
      out[k] = np.empty_like(x)
      for n, (where, piece) in enumerate(pieces(k, x)):
        out[k][where] = one(t, piece, s.setdefault((k, n), {}))
    return out

  return step


def ref_clip_value(a):
  return lambda t, g, p, s: {k: np.clip(x, -a['bound'], a['bound']) for k, x in g.items()}


def ref_clip_tensor(a):
  return by_tensor(lambda t, g, s: g * min(1.0, a['norm'] / np.sqrt(np.sum(g * g))))


def ref_adagc(a):
  def step(t, g, p, s):
    total = np.sqrt(sum(np.sum(x * x) for x in g.values()))

    def one(t, x, mine):
      gamma, norm = mine.get('gamma', np.inf), np.sqrt(np.sum(x * x))
      if t < a['start']:
        x = x * min(1.0, a['absolute'] / total)
        mine['gamma'] = min(gamma, np.sqrt(np.sum(x * x)))
      else:
        x = x * min(1.0, a['relative'] * gamma / norm)
        norm = np.sqrt(np.sum(x * x))
        first = gamma == np.inf
        mine['gamma'] = norm if first else a['beta'] * gamma + (1 - a['beta']) * norm
      return x

    return by_tensor(one)(t, g, p, s)

  return step


def mean(s, name, b, new):
  """The running mean `name` with the part b of the old, before any correction of its bias."""
  s[name] = b * s.get(name, 0.0) + (1 - b) * new
  return s[name]


def ref_stable_adamw(a):
  """With Adam's own corrected moments, not with corrected rates."""

  def one(t, g, s):
    m = mean(s, 'm', a['b1'], g) / (1 - a['b1'] ** t)
    v = mean(s, 'v', a['b2'], g * g) / (1 - a['b2'] ** t)
    r = np.sqrt(np.mean(g * g / np.maximum(v, a['eps'] ** 2)))
    return m / (np.sqrt(v) + a['eps']) / max(1.0, r)

  return by_tensor(one)


def ref_stable_spam(a):
  def one(t, g, s):
    top = np.max(np.abs(g))
    peak = mean(s, 'peak', a['gamma3'], top) / (1 - a['gamma3'] ** t)
    g = np.where(np.abs(g) > peak, g / top * peak, g)
    norm = np.sqrt(np.sum(g * g))
    mu = mean(s, 'mu', a['gamma1'], norm) / (1 - a['gamma1'] ** t)
    nu = mean(s, 'nu', a['gamma2'], norm**2) / (1 - a['gamma2'] ** t)
    g = g / norm * mu / (np.sqrt(nu) + a['eps'])
    if a['every'] and t % a['every'] == 0:
      s['age'] = s['m'] = s['v'] = 0
    s['age'] = s.get('age', 0) + 1
    m = mean(s, 'm', a['b1'], g) / (1 - a['b1'] ** s['age'])
    v = mean(s, 'v', a['b2'], g * g) / (1 - a['b2'] ** s['age'])
    return m / (np.sqrt(v) + a['eps'])

  return by_tensor(one)


def ref_sophia(diagonal):
  """`diagonal`: a parameter -> the diagonal that the functions of `surfaces` have there."""

  def reference(a):
    def step(t, g, p, s):
      out = {}
      for k, x in g.items():
        m, h = s.get(k, (0.0, 0.0))
        m = a['b1'] * m + (1 - a['b1']) * x
        if t % a['every'] == 1 % a['every']:
          h = a['b2'] * h + (1 - a['b2']) * diagonal(p[k])
        s[k] = m, h
        out[k] = np.clip(m / np.maximum(a['rho'] * h, a['eps']), -1, 1)
      return out

    return step

  return reference


def newton_schulz(x, steps: int):
  if x.shape[0] > x.shape[1]:
    return newton_schulz(x.T, steps).T
  x = x / (np.linalg.norm(x) + 1e-7)
  for _ in range(steps):
    a = x @ x.T
    x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
  return x


def ref_muon(a):
  def one(t, g, s):
    b = a['momentum']
    m = mean(s, 'm', b, g)
    fan_in, fan_out = g.shape
    factor = 0.2 * max(g.shape) ** 0.5 if a['scale'] == 'rms' else max(1, fan_out / fan_in) ** 0.5
    return factor * newton_schulz((1 - b) * g + b * m if a['nesterov'] else m, a['steps'])

  return by_tensor(one)


def ref_groups(parts, group):
  """parts: name -> reference step; group: parameter -> name."""

  def step(t, g, p, s):
    out = {}
    for name, part in parts.items():
      mine = {k: x for k, x in g.items() if group(k) == name}
      out |= part(t, mine, p, s.setdefault(name, {}))
    return out

  return step


def ref_scale(a, vectors):
  columns = by_tensor(
    lambda t, g, s: g / np.maximum(np.sqrt(np.mean(g * g, axis=0, keepdims=True)), a['eps'])
  )
  return ref_groups(
    dict(matrix=columns, vectors=vectors), lambda k: 'matrix' if k in MATRICES else 'vectors'
  )
