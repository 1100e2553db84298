"""Mixture of denoisers: each row becomes one of seven tasks, said by a mode token in front.

  R  spans of noise, (mean length, share): (3, 0.15), (8, 0.15)
  S  the rest of a text after a split; the rest is 1 to L/2 tokens, uniform, hence L/4 on average
  X  much noise: (3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5)

Of L tokens n = round(L share) are noise in s = round(n / mean) spans, both partitions uniform, as
T5's. inputs: mode, the text with one sentinel for each span, eos; targets: for each span its
sentinel and its tokens, eos. S has no sentinel: inputs are the text up to the split, targets the
rest. No sentinel comes twice in a row, and putting the targets back into the inputs gives the text.

`form` says for which model, from the same draws:
  encoder_decoder   fields encoder_*: inputs; tokens: a start token and the targets
  prefix            tokens: inputs, targets; the inputs may be seen by all (field `prefix`)
  causal            tokens: inputs, targets
Only targets have weight. Rows have one size, that of the longest task, and padding.

`weights` are those of the seven, R R S X X X X, uniform as in the paper; its ablation found 20 % of
S good. `mode` puts one mode in front whatever the task, '' none: at fine-tuning the mode is fixed,
and a wrong one shows whether the model listens.

Ids: the tokenizer must have extra ones, three modes and then sentinels: `extended(...)`. All
documents of a row are one text, as in T5, hence `data.mask_documents=False`; pack `pad()` keeps
them apart. Tokens are conserved, none is lost: a row of one token hides nothing, and its targets
are eos alone.

Prompts are inputs of S, the model goes on where they end; with `<extra_id_0>`, `<extra_id_1>`, ...
in the text they are inputs of R (of X where only that was trained), and the model writes what the
sentinels stand for. `[R]`, `[S]` or `[X]` at the very front asks for that mode.

Tay et al., 2022 (arXiv:2205.05131), table 1 and section 3; partitions: Raffel et al., 2020
(arXiv:1910.10683). The split of S is read as above from the mean that the paper gives.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from lmjax import kinds
from lmjax.data import fields as fields_lib
from lmjax.data import permutation
from lmjax.data.transforms import _marks
from lmjax.data.transforms import _spans
from lmjax.registry import register

SPANS = ((3, 0.15), (8, 0.15), None, (3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5))
MODES, OF = ('R', 'S', 'X'), (0, 0, 1, 2, 2, 2, 2)
MOST = 1e300  # of a weight, so that their sum is finite


@register('transform', task=True, joins=True)
@dataclasses.dataclass(frozen=True)
class Ul2:
  """Inputs with noise, targets without."""

  tokenizer: Any
  length: int
  form: Literal['encoder_decoder', 'prefix', 'causal'] = 'prefix'
  weights: tuple = (1.0,) * 7
  mode: Literal['auto', 'R', 'S', 'X', ''] = 'auto'

  @staticmethod
  def check(form, weights, mode):
    del form, mode
    numbers = all(isinstance(w, (int, float)) and 0 <= w <= MOST for w in weights)
    if len(weights) != len(SPANS) or not numbers or not sum(weights):
      raise ValueError(
        f'weights={weights}: seven numbers from 0 to {MOST:g}, not all 0, are expected, for the '
        'tasks R R S X X X X'
      )

  def __post_init__(self):
    have = len(getattr(self.tokenizer, 'extra', ()))
    need = len(MODES) + max((s for _, s in self._counts()), default=0)
    if self.length < 2:
      raise ValueError(f'ul2: data.length={self.length}: at least 2 tokens are expected')
    if have < need:
      raise ValueError(
        f'ul2: config.data.tokenizer has {have} extra ids, {need} are needed for modes and '
        f'sentinels; extended(inner=..., extra={need}) gives them'
      )
    if self.tokenizer.eos is None:
      raise ValueError('ul2: config.data.tokenizer has no end-of-text id, which ends the targets')

  def _counts(self):
    """(tokens of noise, spans) of the tasks in use that have spans, for a full row."""
    used = [s for s, w in zip(SPANS, self.weights) if w > 0 and s is not None]
    return [_spans.count(self.length, *s) for s in used] if self.length > 1 else []

  @property
  def sizes(self) -> tuple[int, int, int]:
    """The most tokens of inputs, of targets, and of both together."""
    n, mode = self.length, int(self.mode != '')
    made = [(mode + n - noise + s + 1, noise + s + 1) for noise, s in self._counts()]
    if self.weights[2] > 0:
      rest = max(1, n // 2)
      made += [(mode + n - k + 1, k + 1) for k in (1, rest)]
    return max(a for a, _ in made), max(b for _, b in made), max(a + b for a, b in made)

  def layout(self, fields):
    """The fields of a row of this form."""
    inputs, targets, both = self.sizes
    if self.form == 'encoder_decoder':
      made = {**fields_lib.text(inputs, 'encoder_'), **fields_lib.text(targets + 1)}
    else:
      made = fields_lib.text(both)
    made['weights'] = fields_lib.field('weights', *made['tokens'].shape)
    if self.form == 'prefix':
      made['prefix'] = fields_lib.field('prefix', *made['tokens'].shape)
    return {**fields, **made}  # tokens, segments and positions are always made

  def denoise(self, tokens: np.ndarray, task: int, draws: np.ndarray):
    """(inputs, targets) of one text of at least 1 token, with mode and eos; draws: one more than
    tokens.
    """
    n, extra, eos = len(tokens), self.tokenizer.extra, [self.tokenizer.eos]
    if n < 2:
      inputs, targets = tokens, []
    elif SPANS[task] is None:
      rest = 1 + int(draws[0] * max(1, n // 2))
      inputs, targets = tokens[: n - rest], tokens[n - rest :]
    else:
      found = _spans.bounds(n, *SPANS[task], draws[1:])
      inputs, targets = _spans.split(tokens, found, extra[len(MODES) :][: len(found)])
    mode = MODES.index(self.mode) if self.mode in MODES else OF[task]
    front = [extra[mode]] if self.mode else []
    joined = lambda *parts: np.concatenate(parts).astype(np.int32)
    return joined(front, inputs, eos), joined(targets, eos)

  def __call__(self, row, seed: int):
    tokens = row['tokens'][row['segments'] > 0][: self.length]
    rest = {k: v for k, v in row.items() if k not in fields_lib.TEXT}
    if not len(tokens):
      inputs = targets = np.zeros(0, np.int32)
    else:
      share = np.cumsum(self.weights) / np.sum(self.weights)
      draws = permutation.uniform(seed, self.length + 2)
      task = int(np.searchsorted(share, draws[0], 'right'))
      inputs, targets = self.denoise(tokens, task, draws[1:])
    return rest | self._arranged(inputs, targets)

  def _arranged(self, inputs, targets):
    most_inputs, most_targets, both = self.sizes
    if self.form == 'encoder_decoder':
      first = _spans.start(self.tokenizer)
      return _spans.source_row(inputs, targets, (most_inputs, most_targets), first)
    text = _spans.padded(np.concatenate([inputs, targets]), both)
    first = np.arange(both) < len(inputs)
    text['weights'] = ((text['segments'] > 0) & ~first).astype(np.float32)
    if self.form == 'prefix':
      text['prefix'] = first.astype(np.int32)
    return text

  def _names(self) -> dict[str, int]:
    """Marks of the extra ids that rows have."""
    modes = {MODES[of] for of, w in zip(OF, self.weights) if w > 0} if self.mode else set()
    modes = {self.mode} if self.mode in MODES else modes
    most = max((s for _, s in self._counts()), default=0)
    extra = self.tokenizer.extra
    marks = {f'[{m}]': i for m, i in zip(MODES, extra) if m in modes}
    return marks | {f'<extra_id_{n}>': extra[len(MODES) + n] for n in range(most)}

  def encode(self, text: str) -> list[int]:
    """The ids of a prompt, marks read. Raises ValueError for marks that rows do not have."""
    if self.mode and text[:3] in [f'[{m}]' for m in MODES] and text[:3] not in self._names():
      raise ValueError(f'ul2: no row has the mode {text[:3]}')
    return _marks.encode(self.tokenizer, text, self._names(), 'ul2')

  def decode(self, ids) -> str:
    """The text of targets, with marks."""
    return _marks.decode(self.tokenizer, ids, self._names())

  def prompt(self, ids) -> kinds.Prompt:
    """The inputs of a row that asks about these tokens, for the form. A mode among them is put in
    front; without one it is S, or with sentinels R (or X). Raises ValueError where no row asks so.
    """
    names, modes = self._names(), self.tokenizer.extra[: len(MODES)]
    text = [int(i) for i in ids if i not in modes]
    given = [int(i) for i in ids if i in modes]
    holes = [i for i in text if i in self.tokenizer.extra]
    self._asked(text, given, holes)
    if not given and self.mode:
      wanted = (f'[{m}]' for m in (('R', 'X', 'S') if holes else ('S', 'R', 'X')))
      given = [next(names[m] for m in wanted if m in names)]
    inputs = (*given, *text, self.tokenizer.eos)
    if self.form == 'encoder_decoder':
      return kinds.Prompt((_spans.start(self.tokenizer),), source=inputs, joined=not holes)
    whole = len(inputs) if self.form == 'prefix' else 0
    return kinds.Prompt(inputs, prefix=whole, joined=not holes)

  def _asked(self, text, given, holes):
    names = self._names()
    if not text:
      raise ValueError('ul2: the prompt is empty, and no row begins with nothing')
    if len(given) > 1 or not set(given) <= set(names.values()):
      modes = [m for m in names if m.startswith('[')]
      raise ValueError(
        f'ul2: the prompt has other modes than one of {", ".join(modes) or "none"}, which rows have'
      )
    first = self.tokenizer.extra[len(MODES) :][: len(holes)]
    if tuple(holes) != tuple(first) or not set(holes) <= set(names.values()):
      raise ValueError(
        'ul2: sentinels are expected in order from <extra_id_0> on, each once, at most '
        f'{sum(m.startswith("<") for m in names)} of them'
      )
    if not holes and not self.weights[2] > 0:
      raise ValueError(
        'ul2: no row was to be continued (the weight of S is 0); end the prompt with <extra_id_0>, '
        'for the model to fill it'
      )
