"""The loss layer's kernels compiled for TPUs that are not here, by libtpu's compiler."""

import jax.numpy as jnp
import pytest

import test_linear_cross_entropy as plain
import test_linear_cross_entropy_kernels as kernels
from lmjax.planning import hlo
from lmjax.planning import work


def compiled(name, place, **sizes):
  return kernels.traced(name, place=place, **sizes).lower().compile()


@pytest.mark.slow
@pytest.mark.parametrize(
  'sizes, how',
  [
    (dict(tokens=300, width=40, words=300), plain.HOWS[-1]),
    (dict(tokens=300, width=40, words=300, dtype=jnp.float32), plain.HOWS[-1]),
    (dict(tokens=2048, width=4096, words=4224), plain.HOWS[-1]),
    (dict(tokens=2048, width=1536, words=4224, dtype=jnp.float32, bias=False), plain.HOWS[0]),
    (dict(tokens=256, width=16384, words=384, bias=False), plain.HOWS[0]),
  ],
  ids=str,
)
def test_mosaic_compiles_for_tpus(sizes, how, one_tpu):
  counted = hlo.parse(compiled('mosaic', one_tpu, **sizes, **how).as_text())
  assert work.opaque(counted) == []
  least = 5 * 2 * sizes['tokens'] * sizes['width'] * sizes['words']
  assert work.flops(counted) >= least


@pytest.mark.slow
@pytest.mark.parametrize('one_tpu', ['v5e-1'], indirect=True)
def test_memory_is_a_twentieth_of_the_naive_one(one_tpu):
  """At 50k words and 32k tokens of width 768, as the compiler for a TPU lays it out."""
  sizes = dict(tokens=32_768, width=768, words=50_304, bias=False)
  temp = lambda name: compiled(name, one_tpu, **sizes).memory_analysis().temp_size_in_bytes
  assert temp('whole') > 20 * temp('mosaic')
