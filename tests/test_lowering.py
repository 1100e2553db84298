"""The training step of every recipe is lowered for GPUs and TPUs, which needs neither."""

import jax
import pytest

from lmjax import build
from lmjax import config

RECIPES = ('quickstart', 'gpt2:124M', 'llama:1B', 'bert_tiny', 'palm:tiny', 'gpt3:tiny')


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
@pytest.mark.parametrize('recipe', RECIPES)
def test_the_step_is_lowered(recipe, platform):
  overrides = [('mesh.data', '1'), ('guard', 'spikes()')]
  run = build.build(config.resolve(config.load(recipe, overrides)))
  step = jax.jit(run.step, donate_argnums=0)
  traced = step.trace(run.state_shapes, run.batch_shapes(), jax.random.key(0))
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  # Nothing on the way asks the host: a step that did would wait for it.
  assert 'callback' not in text and 'stablehlo.dot_general' in text
  width = 'bf16' if run.config['model']['dtype'] == 'bfloat16' else 'f32'
  products = [line for line in text.splitlines() if 'stablehlo.dot_general' in line]
  assert any(f'x{width}>' in line.rsplit('->', 1)[-1] for line in products)


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
@pytest.mark.parametrize('recipe', ['gpt2:124M', 'llama:1B'])
def test_gpus_without_bfloat16_get_none(recipe, dtype):
  """As those of the T4's kind; their attention is `xla`, since cuDNN's wants a later GPU."""
  overrides = [('mesh.data', '1'), ('model.dtype', dtype), ('kernels.attention', 'xla')]
  run = build.build(config.resolve(config.load(recipe, overrides)))
  with run.choices('gpu'):
    step = jax.jit(run.step).trace(run.state_shapes, run.batch_shapes(), jax.random.key(0))
  text = step.lower(lowering_platforms=('cuda',)).as_text()
  assert 'bf16' not in text and ('xf16>' in text) == (dtype == 'float16')
