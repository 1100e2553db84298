"""T5 and T5 1.1 (Flan-T5): an encoder and a decoder, with a bias by distance that all layers of a
stack share, norms without a mean, and no other biases.

Raffel et al., 2020 (arXiv:1910.10683). Attention has no factor; where one table embeds and makes
the logits, these are divided by sqrt(width). `feed_forward_proj` may be relu, gated-gelu or
gated-silu. Where config.json says nothing of a row's length it is 512, as in training.
"""

from lmjax.interop.hf import _settings
from lmjax.interop.hf._fields import Fields
from lmjax.interop.hf._tensors import Row, Table

FFN = {'relu': 'relu', 'gated-gelu': 'geglu', 'gated-silu': 'swiglu'}
SCALED = 'scale_decoder_outputs'
FIELDS = Fields(
  sizes=('vocab_size', 'd_model', 'd_kv', 'd_ff', 'num_layers', 'num_heads'),
  defaults=dict(
    num_decoder_layers=None,
    n_positions=512,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
    feed_forward_proj='relu',
    tie_word_embeddings=True,
  ),
  fixed=dict(is_encoder_decoder=(True,)),
  silent=(
    'classifier_dropout',
    'dense_act_fn',
    'dropout_rate',
    'initializer_factor',
    'is_gated_act',
    'output_past',
  ),
  kept=(SCALED,),
)


def _attention(own: str, name: str) -> tuple[Row, ...]:
  inward = tuple(
    Row(f'{own}/{x}/kernel', f'{name}.{x}.weight', 'D H K -> (H K) D') for x in ('q', 'k', 'v')
  )
  return *inward, Row(f'{own}/out/kernel', f'{name}.o.weight', 'H K D -> D (H K)')


def _ffn(at: str) -> tuple[Row, ...]:
  at, gate = f'{at}.DenseReluDense.', 'ffn/gate/kernel'
  return (
    Row(gate, f'{at}wi_0.weight', 'D F -> F D'),
    Row('ffn/up/kernel', f'{at}wi_1.weight', 'D F -> F D', beside=gate),
    Row('ffn/up/kernel', f'{at}wi.weight', 'D F -> F D', unless=gate),
    Row('ffn/down/kernel', f'{at}wo.weight', 'F D -> D F'),
  )


def _norm(own: str, at: str) -> Row:
  return Row(f'{own}/scale', f'{at}.layer_norm.weight')


def _stack(name: str) -> tuple[Row, ...]:
  at = [f'{name}.block.{{n}}.layer.{i}' for i in range(3)]
  rows = (_norm('norm_mixer', at[0]), *_attention('mixer/inner', f'{at[0]}.SelfAttention'))
  if name == 'decoder':
    rows += (_norm('norm_cross', at[1]), *_attention('cross', f'{at[1]}.EncDecAttention'))
  last = at[2 if name == 'decoder' else 1]
  return *rows, _norm('norm_ffn', last), *_ffn(last)


STACKS = ('encoder', 'decoder')
BIAS = '{}.block.0.layer.{}.{}.relative_attention_bias.weight'
TABLE = Table(
  outer=(
    Row('embed/table', 'shared.weight', 'V D -> V D'),
    Row('embed/unembed', 'lm_head.weight', 'V D -> V D'),
    Row('encoder_final_norm/scale', 'encoder.final_layer_norm.weight'),
    Row('final_norm/scale', 'decoder.final_layer_norm.weight'),
  ),
  stacks={name: _stack(name) for name in STACKS},
  shared={name: (Row('table', BIAS.format(name, 0, 'SelfAttention')),) for name in STACKS},
  # Of the first files; never read by the model.
  dropped=('decoder.block.{n}.layer.{n}.EncDecAttention.relative_attention_bias.weight',),
  copies=(
    *((f'{name}.embed_tokens.weight', 'shared.weight') for name in STACKS),
    ('lm_head.weight', 'shared.weight'),
  ),
)
CLASS = 'T5ForConditionalGeneration'


def to_settings(h):
  ffn, tied = h['feed_forward_proj'], h['tie_word_embeddings']
  if ffn not in FFN:
    raise ValueError(
      f'config.json: feed_forward_proj={ffn!r}: this is not supported, only {", ".join(FFN)}'
    )
  scaled = h.get(SCALED, tied)
  if not isinstance(scaled, bool):
    raise ValueError(f'config.json: {SCALED}={scaled!r}: true or false is expected')
  buckets, distance = h['relative_attention_num_buckets'], h['relative_attention_max_distance']
  norm = f'rms_norm(eps={h["layer_norm_epsilon"]!r})'
  sizes = f'head_dim={h["d_kv"]}, heads={h["num_heads"]}, kv_heads={h["num_heads"]}'

  def block(causal, residual):
    inner = f'gqa({sizes}, causal={causal})'
    mixer = f'relative_bias(inner={inner}, buckets={buckets}, distance={distance})'
    return _settings.block(mixer, f'{FFN[ffn]}(hidden={h["d_ff"]})', norm, residual)

  depth = h['num_decoder_layers'] or h['num_layers']
  return _settings.Settings(
    width=h['d_model'],
    depth=depth,
    vocab=h['vocab_size'],
    length=h['n_positions'],
    tied=tied,
    position='none()',
    final_norm=norm,
    blocks=dict(
      encoder=block(False, 'pre()'),
      decoder=block(True, f'pre_cross(cross=cross_attention({sizes}))'),
    ),
    stack=f'decoder*{depth}',
    architecture=f'encoder_decoder(encoder="encoder*{h["num_layers"]}")',
    transforms='span_corruption()',
    init=f't5(scale_logits={scaled})',
  )


def to_fields(view):
  own = view.layer('mixer')
  mixer, ffn = own.inner(), view.layer('ffn')
  names = {v: k for k, v in FFN.items()}
  scaled = view.parts['init'] != 'logits times 1.0'
  return dict(
    vocab_size=view.vocab,
    d_model=view.width,
    d_kv=mixer.get('head_dim'),
    d_ff=ffn.get('hidden'),
    num_layers=len(view.stacks.get('encoder', ())) or None,
    num_decoder_layers=len(view.layers),
    num_heads=mixer.get('heads'),
    relative_attention_num_buckets=own.get('buckets'),
    relative_attention_max_distance=own.get('distance'),
    layer_norm_epsilon=view.layer('norm').get('eps'),
    feed_forward_proj=names.get(ffn.name),
    tie_word_embeddings=view.tied,
    dropout_rate=0.0,
    is_encoder_decoder=True,
    **({} if scaled == view.tied else {SCALED: scaled}),
  )
