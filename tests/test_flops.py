"""The FLOP counter against counts by hand."""

import pytest

from lmjax import build
from lmjax import config
from lmjax import flops


def count(recipe, *overrides):
  return flops.per_token(build.build(config.resolve(config.load(recipe, list(overrides)))))


def test_gpt2_124m_by_hand():
  """12 layers of 4 D^2 + 8 D^2 matrices, the tied table once as unembedding, attention of 12 heads
  of 64 at T = 1024.
  """
  found = count('gpt2:124M')
  assert found.matrices == 2 * (12 * 12 * 768**2 + 50304 * 768)
  assert found.mixing_full == 12 * 4 * 768 * 1024
  assert found.mixing_causal == 12 * 4 * 768 * (1024 + 1) / 2
  # nanoGPT's formula, 6 N + 12 L H Q T with N without positions, counts the same but for norms and
  # biases.
  nano = 6 * (12 * 12 * 768**2 + 50304 * 768) + 12 * 12 * 12 * 64 * 1024
  assert found.step_full == nano


def test_llama_grouped_and_gated_by_hand():
  """8B: q and out 4096 x 4096, k and v 4096 x 1024, three matrices 4096 x 14336; untied: only the
  unembedding counts.
  """
  found = count('llama:8B')
  layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
  assert found.matrices == 2 * (32 * layer + 128_256 * 4096)
  assert found.mixing_full == 32 * 4 * 4096 * 8192


def test_windows_and_shared_segments():
  wide = count('quickstart', ('model.mixer.window', '16'), ('model.depth', '1'))
  # The first 16 tokens see 1 ... 16 keys, the other 112 see 16.
  assert wide.mixing_causal == 4 * 128 * (16 * 17 / 2 + 112 * 16) / 128
  once = count('quickstart', ('model.depth', '1'))
  shared = count('quickstart', ('model.stack', 'shared(block)*3'))
  head = 2 * 260 * 128
  assert shared.matrices - head == 3 * (once.matrices - head)
  assert shared.mixing_full == 3 * once.mixing_full


def test_both_sides():
  found = count('bert_tiny')
  assert found.mixing_full == found.mixing_causal == 4 * 4 * 128 * 32  # layers, width, row


def test_mfu_formula():
  found = flops.Flops(matrices=1e9, mixing_full=2e8, mixing_causal=1e8)
  assert flops.mfu(1000.0, found, devices=2, device_kind='NVIDIA H200') == {
    'mfu_full': pytest.approx(1000 * 3.6e9 / (2 * 989e12)),
    'mfu_causal': pytest.approx(1000 * 3.3e9 / (2 * 989e12)),
  }
  assert flops.mfu(1000.0, found, devices=1, device_kind='cpu') == {}


def test_encoders_count_by_their_own_tokens():
  """Rows of 128 bytes; the encoder reads E tokens of them, the decoder predicts T."""
  run = build.build(config.resolve(config.load('ul2_tiny:encoder_decoder')))
  found, d = flops.per_token(run), 128
  e, t = run.fields['encoder_tokens'].shape[0], run.fields['tokens'].shape[0] - 1
  layer = 12 * d * d
  own = e * 2 * layer + t * (2 * layer + 2 * 2 * d * d + 300 * d)
  memory = e * 2 * 2 * d * d  # keys and values that cross-attention makes of each token read
  pairs = 2 * 4 * d * (e * e + t * t + t * e)
  assert e != t
  assert found.matrices + found.mixing_full == pytest.approx((2 * (own + memory) + pairs) / 128)


def test_keys_beside_a_row_count_for_each_of_its_tokens():
  """MEGABYTE's local model: (P + 1) / 2 bytes of the own patch on average, and all r before it."""
  spec = 'megabyte(patch=8, local_width=32, cross_patch_attention={})'
  sizes = [('model.width', '64'), ('model.mixer.head_dim', '32')]
  made = lambda r: ('model.architecture', spec.format(r))
  none, some = (count('quickstart', *sizes, made(r)) for r in (0, 5))
  more = 2 * 4 * 32 * 5  # layers, FLOPs of a pair a value, width, keys
  assert some.mixing_causal - none.mixing_causal == pytest.approx(more)
  assert some.mixing_full - none.mixing_full == pytest.approx(more)


def test_prefixes_count_by_the_tokens_that_the_model_sees():
  plain, long = count('quickstart'), build.build(config.resolve(config.load('ul2_tiny:prefix')))
  steps = long.fields['tokens'].shape[0] - 1
  head = 2 * 260 * 128
  per_layer = (plain.matrices - head) / 4
  assert flops.per_token(long).matrices == pytest.approx(
    (4 * per_layer + 2 * 300 * 128) * steps / 128
  )


def test_a_token_meets_one_expert():
  dense = count('quickstart', ('model.ffn', 'gelu()'))
  experts = count('quickstart', ('model.ffn', 'base_layers(experts=4)'))
  assert dense.matrices <= experts.matrices < 2.2 * dense.matrices
  more = count('quickstart', ('model.ffn', 'base_layers(experts=8)'))
  assert more.matrices - experts.matrices == 4 * 2 * 4 * 128, 'the router alone grows'


def test_recursions_count_the_tokens_that_take_part():
  stack = ('model.stack', 'block + shared(block)*3 + block')
  plain = count('quickstart', stack)
  mor = ('model.architecture', 'mixture_of_recursions()')
  routed = count('quickstart', stack, mor)
  head, layer = 2 * 260 * 128, (plain.matrices - 2 * 260 * 128) / 5
  assert head + 4 * layer <= routed.matrices < head + 4.1 * layer, '1 + (1 + 2/3 + 1/3) + 1 layers'
  assert routed.mixing_full == pytest.approx(
    plain.mixing_full / 5 * (3 + (2 / 3) ** 2 + 1 / 9), rel=0.02
  )


@pytest.mark.parametrize(
  'linear, share',
  [('spdf(sparsity=0.75)', 0.25), ('spdf(sparsity=0.75, dense=True)', 1), ('sltrain(rank=8)', 1)],
)
def test_parameterizations_of_matrices(linear, share):
  """A mask skips its share; a matrix that is multiplied out costs what a full one does."""
  dense, found = count('quickstart'), count('quickstart', ('model.linear', linear))
  head = 2 * 260 * 128
  assert found.matrices - head == pytest.approx(share * (dense.matrices - head))


def test_guided_matrices_cost_their_share_of_the_run():
  plain = count('quickstart', ('model.linear', 'structured_ffn(rank=16)'))
  spec = 'structured_ffn(rank=16, guided=0.5, steps=1800)'
  guided = count('quickstart', ('model.linear', spec))
  assert guided.matrices - plain.matrices == pytest.approx(0.5 * 4 * 2 * 8 * 128**2)
