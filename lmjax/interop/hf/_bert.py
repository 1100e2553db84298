"""What BERT and RoBERTa share: an encoder with norms behind sublayers, learned positions, a vector
for the kind of text, and the head of masked language models.

What the head does not need is left out: the pooler, and what tells following sentences apart.
"""

from typing import Any, Mapping

from lmjax.interop.hf import _settings
from lmjax.interop.hf import gpt2
from lmjax.interop.hf._fields import Fields
from lmjax.interop.hf._tensors import Row, Table

LAYER_NORM = 'LayerNorm'


def fields_of(**defaults: Any) -> Fields:
  """Fields, with these defaults beside those of both."""
  return Fields(
    sizes=(
      'vocab_size',
      'hidden_size',
      'intermediate_size',
      'num_hidden_layers',
      'num_attention_heads',
      'max_position_embeddings',
    ),
    defaults=dict(hidden_act='gelu', layer_norm_eps=1e-12, type_vocab_size=2, **defaults),
    fixed=dict(
      position_embedding_type=('absolute',), is_decoder=(False,), tie_word_embeddings=(True,)
    ),
    silent=(
      *('attention_probs_dropout_prob', 'hidden_dropout_prob', 'classifier_dropout'),
      # Of the original's multilingual and cased models, read by nothing.
      *('directionality', 'pooler_fc_size', 'pooler_num_attention_heads', 'pooler_num_fc_layers'),
      *('pooler_size_per_head', 'pooler_type'),
    ),
  )


def _linear(own: str, name: str, axes: tuple[str, str]) -> tuple[Row, Row]:
  return (
    Row(f'{own}/kernel', f'{name}.weight', axes[0]),
    Row(f'{own}/bias', f'{name}.bias', axes[1]),
  )


def _norm(own: str, name: str) -> tuple[Row, Row]:
  return Row(f'{own}/scale', f'{name}.weight'), Row(f'{own}/bias', f'{name}.bias')


def table(prefix: str, head: str, head_norm: str, bias: str, decoder: str, *dropped: str) -> Table:
  """Rows; prefix: of the encoder. head, head_norm, bias, decoder: names of the head's layers."""
  at, embed = f'{prefix}encoder.layer.{{n}}.', f'{prefix}embeddings.'
  rows = []
  for own, name in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    axes = 'D H K -> (H K) D', 'H K -> (H K)'
    rows += _linear(f'mixer/{own}', f'{at}attention.self.{name}', axes)
  rows += _linear('mixer/out', f'{at}attention.output.dense', ('H K D -> D (H K)', ''))
  rows += _norm('norm_mixer', f'{at}attention.output.{LAYER_NORM}')
  rows += _linear('ffn/up', f'{at}intermediate.dense', ('D F -> F D', ''))
  rows += _linear('ffn/down', f'{at}output.dense', ('F D -> D F', ''))
  rows += _norm('norm_ffn', f'{at}output.{LAYER_NORM}')
  return Table(
    outer=(
      Row('embed/table', f'{embed}word_embeddings.weight', 'V D -> V D'),
      Row('position/table', f'{embed}position_embeddings.weight'),
      Row('position/types', f'{embed}token_type_embeddings.weight'),
      *_norm('embed_norm', f'{embed}{LAYER_NORM}'),
      *_linear('head', head, ('D E -> E D', '')),
      *_norm('head_norm', head_norm),
      Row('embed/bias', bias, 'V -> V'),
    ),
    layer=tuple(rows),
    prefix=prefix,
    dropped=(f'{embed}position_ids', *(f'{prefix}pooler.dense.{x}' for x in WEIGHTS), *dropped),
    copies=(
      (f'{decoder}.weight', f'{embed}word_embeddings.weight'),
      (f'{decoder}.bias', bias),
    ),
    spelled=(
      (f'{LAYER_NORM}.weight', f'{LAYER_NORM}.gamma'),
      (f'{LAYER_NORM}.bias', f'{LAYER_NORM}.beta'),
    ),
  )


WEIGHTS = 'weight', 'bias'


def settings(h: Mapping[str, Any], offset: int, head_approximate: bool) -> _settings.Settings:
  """offset: rows of the table of positions before the first one."""
  width, heads, length = h['hidden_size'], h['num_attention_heads'], h['max_position_embeddings']
  if width % heads:
    raise ValueError(
      f'config.json: hidden_size={width} does not divide by num_attention_heads={heads}'
    )
  if length <= offset:
    raise ValueError(
      f'config.json: max_position_embeddings={length}: {offset} rows of it stand before the first '
      'position, so that more are expected'
    )
  norm = f'layer_norm(eps={h["layer_norm_eps"]!r})'
  block = _settings.block(
    f'gqa(head_dim={width // heads}, heads={heads}, kv_heads={heads}, causal=False, bias=True)',
    f'gelu(hidden={h["intermediate_size"]}, bias=True, approximate={approximate(h)})',
    norm,
    'post()',
  )
  return _settings.Settings(
    width=width,
    depth=h['num_hidden_layers'],
    vocab=h['vocab_size'],
    length=length - offset,
    tied=True,
    position=f'learned_types(offset={offset}, types={h["type_vocab_size"]})',
    final_norm='',
    blocks={'block': block},
    embed='tied(bias=True)',
    embed_norm=norm,
    architecture=f'head_transform(norm={norm}, approximate={head_approximate})',
    objective='mlm()',
  )


def approximate(h: Mapping[str, Any]) -> bool:
  """Whether GELU is its tanh form."""
  act = h['hidden_act']
  if act not in gpt2.APPROXIMATE:
    raise ValueError(
      f'config.json: hidden_act={act!r}: this is not supported, only {", ".join(gpt2.APPROXIMATE)}'
    )
  return gpt2.APPROXIMATE[act]


def fields(view: _settings.View) -> dict[str, Any]:
  """Fields of config.json of both."""
  mixer, ffn, position = view.layer('mixer'), view.layer('ffn'), view.parts['position']
  return dict(
    vocab_size=view.vocab,
    hidden_size=view.width,
    intermediate_size=ffn.get('hidden'),
    num_hidden_layers=len(view.layers),
    num_attention_heads=mixer.get('heads'),
    max_position_embeddings=view.length + (position.get('offset') or 0),
    type_vocab_size=position.get('types'),
    hidden_act='gelu' if ffn.get('approximate') is False else 'gelu_new',
    layer_norm_eps=view.layer('norm').get('eps'),
    tie_word_embeddings=True,
    attention_probs_dropout_prob=0.0,
    hidden_dropout_prob=0.0,
  )
